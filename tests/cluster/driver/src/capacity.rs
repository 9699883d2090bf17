//! How large a volume becomes.

use tonic::Status;

use crate::proto::csi::CapacityRange;

/// Volumes are whole multiples of this, bytes.
pub(crate) const GRAIN: u64 = 1 << 20;

/// A volume of which nobody said how large it should be, bytes.
const DEFAULT: u64 = 1 << 30;

/// Least size of a volume that is to hold a file system of this type: what its mkfs accepts.
pub(crate) fn least(fs_type: &str) -> u64 {
    match fs_type {
        "xfs" => 300 << 20,
        "btrfs" => 128 << 20,
        _ => GRAIN,
    }
}

/// The size of a new volume: the least that the range allows, and no less than `least`. A copy of `source` bytes is at
/// least as large.
pub(crate) fn choose(range: Option<&CapacityRange>, least: u64, source: Option<u64>) -> Result<u64, Status> {
    let (required, limit) = bounds(range)?;
    if let Some(source) = source
        && required > 0
        && required.next_multiple_of(GRAIN) < source
    {
        return Err(Status::out_of_range(format!(
            "required_bytes {required} is less than the {source} bytes of the source: ask for as much or more"
        )));
    }
    let size = match (required, source) {
        (0, Some(source)) => source,
        // A limit below the default is a wish too.
        (0, None) => DEFAULT.min(limit.unwrap_or(DEFAULT) / GRAIN * GRAIN),
        (required, _) => required.next_multiple_of(GRAIN),
    };
    within(size.max(least), limit)
}

/// The size of a volume of `size` bytes after a call for expansion. It never shrinks.
pub(crate) fn expand(range: &CapacityRange, size: u64) -> Result<u64, Status> {
    let (required, limit) = bounds(Some(range))?;
    within(required.next_multiple_of(GRAIN).max(size), limit)
}

/// True when a volume of `size` bytes is what the range asks for.
pub(crate) fn fits(range: Option<&CapacityRange>, size: u64) -> Result<bool, Status> {
    let (required, limit) = bounds(range)?;
    Ok(required <= size && limit.is_none_or(|limit| size <= limit))
}

fn within(size: u64, limit: Option<u64>) -> Result<u64, Status> {
    match limit {
        Some(limit) if size > limit => Err(Status::out_of_range(format!(
            "limit_bytes {limit} is less than the {size} bytes that the volume needs (sizes are multiples of {GRAIN})"
        ))),
        _ => Ok(size),
    }
}

fn bounds(range: Option<&CapacityRange>) -> Result<(u64, Option<u64>), Status> {
    let Some(range) = range else { return Ok((0, None)) };
    // Half of the largest number leaves room to round up; no file system here is as large.
    let checked = |name: &str, value: i64| {
        u64::try_from(value)
            .ok()
            .filter(|value| *value < 1 << 62)
            .ok_or_else(|| Status::out_of_range(format!("{name} is {value}, which no volume can have")))
    };
    let required = checked("required_bytes", range.required_bytes)?;
    let limit = Some(checked("limit_bytes", range.limit_bytes)?).filter(|limit| *limit > 0);
    match limit {
        Some(limit) if limit < required => {
            Err(Status::out_of_range(format!("limit_bytes {limit} is less than required_bytes {required}")))
        }
        _ => Ok((required, limit)),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
        Some(CapacityRange { required_bytes, limit_bytes })
    }

    fn chosen(required: i64, limit: i64, least: u64, source: Option<u64>) -> Result<u64, Code> {
        choose(range(required, limit).as_ref(), least, source).map_err(|status| status.code())
    }

    #[test]
    fn sizes_are_rounded_up_within_the_limit() {
        assert_eq!(choose(None, GRAIN, None).unwrap(), DEFAULT);
        assert_eq!(chosen(0, 5 << 20, GRAIN, None), Ok(5 << 20));
        assert_eq!(chosen(1, 0, GRAIN, None), Ok(GRAIN));
        assert_eq!(chosen((1 << 20) + 1, 0, GRAIN, None), Ok(2 << 20));
        assert_eq!(chosen((1 << 20) + 1, (1 << 20) + 2, GRAIN, None), Err(Code::OutOfRange));
        assert_eq!(chosen(10 << 20, 0, least("xfs"), None), Ok(300 << 20));
        assert_eq!(chosen(10 << 20, 20 << 20, least("xfs"), None), Err(Code::OutOfRange));
    }

    #[test]
    fn a_copy_is_no_smaller_than_its_source() {
        assert_eq!(chosen(0, 0, GRAIN, Some(7 << 20)), Ok(7 << 20));
        assert_eq!(chosen((7 << 20) - 5, 0, GRAIN, Some(7 << 20)), Ok(7 << 20));
        assert_eq!(chosen(9 << 20, 0, GRAIN, Some(7 << 20)), Ok(9 << 20));
        assert_eq!(chosen(6 << 20, 0, GRAIN, Some(7 << 20)), Err(Code::OutOfRange));
        assert_eq!(chosen(0, 6 << 20, GRAIN, Some(7 << 20)), Err(Code::OutOfRange));
    }

    #[test]
    fn what_no_volume_can_be_is_refused() {
        assert_eq!(chosen(-1, 0, GRAIN, None), Err(Code::OutOfRange));
        assert_eq!(chosen(0, -1, GRAIN, None), Err(Code::OutOfRange));
        assert_eq!(chosen(i64::MAX, 0, GRAIN, None), Err(Code::OutOfRange));
        assert_eq!(chosen(2 << 20, 1 << 20, GRAIN, None), Err(Code::OutOfRange));
        assert_eq!(chosen(0, 4096, GRAIN, None), Err(Code::OutOfRange));
    }

    #[test]
    fn expansion_never_shrinks() {
        let grown = |required, limit| expand(&range(required, limit).unwrap(), 8 << 20).map_err(|s| s.code());
        assert_eq!(grown((9 << 20) - 1, 0), Ok(9 << 20));
        assert_eq!(grown(1, 0), Ok(8 << 20));
        assert_eq!(grown(1, 7 << 20), Err(Code::OutOfRange));
        assert!(fits(range(8 << 20, 8 << 20).as_ref(), 8 << 20).unwrap());
        assert!(!fits(range(9 << 20, 0).as_ref(), 8 << 20).unwrap());
        assert!(!fits(range(0, 7 << 20).as_ref(), 8 << 20).unwrap());
        assert!(fits(None, 8 << 20).unwrap());
    }
}
