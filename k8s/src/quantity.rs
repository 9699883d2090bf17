//! Amounts as Kubernetes writes them.
//!
//! Source: Kubernetes, `apimachinery/pkg/api/resource/quantity.go`.

/// The bytes of an amount such as `5Gi`, `1.5G`, `1e9` or `100m`, rounded up; nothing for what is none, is negative, or is
/// more than fits.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let parts = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (times, divided) = unit(suffix)?;
    let total = digits.checked_mul(times)?.div_ceil(parts.checked_mul(divided)?);
    u64::try_from(total).ok()
}

/// What a suffix multiplies by, and divides by.
fn unit(suffix: &str) -> Option<(u128, u128)> {
    let binary = |n: u32| Some((1u128 << (10 * n), 1));
    let power = |n: i32| match u32::try_from(n) {
        Ok(n) => 10u128.checked_pow(n).map(|times| (times, 1)),
        Err(_) => 10u128.checked_pow(n.unsigned_abs()).map(|divided| (1, divided)),
    };
    match suffix {
        "" => Some((1, 1)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        "n" => power(-9),
        "u" => power(-6),
        "m" => power(-3),
        "k" => power(3),
        "M" => power(6),
        "G" => power(9),
        "T" => power(12),
        "P" => power(15),
        "E" => power(18),
        _ => power(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", 0),
            ("1", 1),
            ("5Gi", 5 << 30),
            ("1.5Gi", 3 << 29),
            ("1500M", 1_500_000_000),
            ("1e9", 1_000_000_000),
            ("1E3", 1000),
            ("2E", 2_000_000_000_000_000_000),
            ("100m", 1),
            ("1001m", 2),
            (".5Ki", 512),
            ("1e-3", 1),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for bad in ["", ".", "Gi", "-1", "1Gib", "1.2.3", "1e99", "16Ei", "1e", "1 Gi"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
