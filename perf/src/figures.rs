//! From raw results to figures: medians, the best peer, and what is expected of tradewind.

use crate::data::Set;
use crate::record::{Results, Run};
use crate::tools::{Operation, Tool, Variant};

/// Median, smallest and largest of repeated measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

/// The repeated runs of one operation of one variant.
pub(crate) struct Row<'a> {
    pub(crate) variant: Variant,
    pub(crate) runs: Vec<&'a Run>,
}

impl Row<'_> {
    fn spread(&self, of: impl Fn(&Run) -> f64) -> Spread {
        let nothing = Spread { median: f64::NAN, min: f64::NAN, max: f64::NAN };
        Spread::of(self.runs.iter().map(|run| of(run))).unwrap_or(nothing)
    }

    /// Seconds.
    pub(crate) fn wall(&self) -> Spread {
        self.spread(|run| run.measured.wall)
    }

    /// CPU seconds.
    pub(crate) fn cpu(&self) -> Spread {
        self.spread(|run| run.measured.cpu())
    }

    /// MiB.
    pub(crate) fn rss(&self) -> Spread {
        self.spread(|run| run.measured.rss)
    }

    /// MiB, afterwards.
    pub(crate) fn repository(&self) -> Spread {
        self.spread(|run| mib(run.repository))
    }

    /// MiB on disk of what was restored.
    pub(crate) fn allocated(&self) -> Spread {
        self.spread(|run| mib(run.allocated))
    }
}

/// Bytes as MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The rows of one operation on one set, tradewind first.
pub(crate) fn rows(results: &Results, set: Set, operation: Operation) -> Vec<Row<'_>> {
    let of = |variant| Row {
        variant,
        runs: results
            .runs
            .iter()
            .filter(|r| (r.set, r.variant, r.operation) == (set, variant, operation))
            .collect(),
    };
    Variant::all().into_iter().map(of).filter(|row| !row.runs.is_empty()).collect()
}

/// Tradewind's row and those of the peers.
pub(crate) fn against<'r, 'a>(rows: &'r [Row<'a>]) -> Option<(&'r Row<'a>, Vec<&'r Row<'a>>)> {
    let tradewind = rows.iter().find(|row| row.variant == Variant::TRADEWIND)?;
    Some((tradewind, rows.iter().filter(|row| row.variant != Variant::TRADEWIND).collect()))
}

/// The row with the smallest figure.
pub(crate) fn least<'r, 'a>(rows: &[&'r Row<'a>], of: impl Fn(&Row<'_>) -> f64) -> Option<&'r Row<'a>> {
    rows.iter().copied().min_by(|a, b| of(a).total_cmp(&of(b)))
}

/// Something that tradewind promises, and whether these figures show it.
#[derive(Debug, PartialEq)]
pub(crate) struct Expectation {
    pub(crate) what: String,
    pub(crate) found: String,
    pub(crate) met: bool,
}

/// Everything that is expected and can be judged from these results.
pub(crate) fn expectations(results: &Results) -> Vec<Expectation> {
    let mut all = Vec::new();
    let borg_best = Variant { tool: Tool::Borg, best: true };
    let others: fn(Variant) -> bool = |_| true;
    let but_borg: fn(Variant) -> bool = |v| v != Variant { tool: Tool::Borg, best: true };
    let borg: fn(Variant) -> bool = |v| v == Variant { tool: Tool::Borg, best: true };
    for (set, factor, who, chosen) in [
        (Set::Random, 6.0, "the best peer".to_owned(), others),
        (Set::Image, 4.0, format!("the best peer ({borg_best} aside)"), but_borg),
        (Set::Image, 1.8, borg_best.to_string(), borg),
    ] {
        let rows = rows(results, set, Operation::Full);
        let Some((tradewind, mut peers)) = against(&rows) else { continue };
        peers.retain(|row| chosen(row.variant));
        let Some(best) = least(&peers, |row| row.cpu().median) else { continue };
        let ratio = best.cpu().median / tradewind.cpu().median;
        all.push(Expectation {
            what: format!("{set}, full: at least {factor} times less CPU than {who}"),
            found: format!("{ratio:.1} times ({})", best.variant),
            met: ratio >= factor,
        });
    }
    for set in Set::ALL {
        for operation in Operation::ALL {
            let rows = rows(results, set, operation);
            let Some((tradewind, peers)) = against(&rows) else { continue };
            let Some(best) = least(&peers, |row| row.wall().median) else { continue };
            let (ours, theirs) = (tradewind.wall().median, best.wall().median);
            all.push(Expectation {
                what: format!("{set}, {}: wall time below every peer", name(operation)),
                found: format!("{ours:.2} s, {} {theirs:.2} s", best.variant),
                met: ours < theirs,
            });
        }
        for operation in [Operation::Full, Operation::Incremental] {
            let rows = rows(results, set, operation);
            let Some((tradewind, peers)) = against(&rows) else { continue };
            let Some(best) = least(&peers, |row| row.repository().median) else { continue };
            let percent = (tradewind.repository().median / best.repository().median - 1.0) * 100.0;
            all.push(Expectation {
                what: format!("{set}, {}: repository within 10 % of the smallest", name(operation)),
                found: format!("{percent:+.1} % ({})", best.variant),
                met: percent <= 10.0,
            });
        }
    }
    all
}

/// The operation in words.
pub(crate) fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::Full => "full",
        Operation::Incremental => "incremental",
        Operation::Restore => "restore",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compare::Differences;
    use crate::measure::Measured;

    #[test]
    fn medians() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    /// Three rounds on the random set in which tradewind takes `wall` and `cpu` seconds, and borg-best takes 20.
    pub(crate) fn sample(wall: f64, cpu: f64) -> Results {
        let mut results = Results::default();
        for repeat in 1..=3 {
            for (variant, wall, user, repository) in
                [("tradewind", wall, cpu, 105), ("borg-best", 20.0, 20.0, 100)]
            {
                for operation in Operation::ALL {
                    let measured = Measured { wall: wall + f64::from(repeat), user, ..Measured::default() };
                    let variant = variant.parse().unwrap();
                    let (repository, differences) = (repository << 20, Differences::new());
                    let (set, allocated) = (Set::Random, 0);
                    results.runs.push(Run {
                        set,
                        variant,
                        repeat,
                        operation,
                        measured,
                        repository,
                        allocated,
                        differences,
                    });
                }
            }
        }
        results
    }

    #[test]
    fn what_is_expected_is_judged() {
        let good = expectations(&sample(5.0, 3.0));
        assert_eq!(good.len(), 6, "{good:?}");
        assert!(good.iter().all(|e| e.met), "{good:?}");
        assert_eq!(good[0].found, "6.7 times (borg-best)");
        let bad = expectations(&sample(30.0, 4.0));
        assert_eq!(bad.iter().filter(|e| !e.met).count(), 4, "{bad:?}");
        assert!(expectations(&Results::default()).is_empty());
    }
}
