//! BENCHMARKS.md from the raw results.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use crate::data::Set;
use crate::figures::{Row, Spread, against, expectations, least, mib, name, rows};
use crate::record::{Machine, Results};
use crate::tools::{Operation, Variant};

/// The whole report.
pub(crate) fn render(results: &Results) -> Result<String, fmt::Error> {
    let mut out = String::new();
    out.push_str(
        "# Benchmarks\n\nTradewind beside other backup tools, on the same data, machine and disk, in one run. Every \
         repository is encrypted. Written by `make perf` from the raw results; not edited by hand.\n\n",
    );
    if let Some(machine) = results.machines.iter().find(|machine| machine.scale != "1") {
        writeln!(
            out,
            "**Scale {}: this shows that the harness works. It is no benchmark.**\n",
            machine.scale
        )?;
    }
    summary(&mut out, results)?;
    expected(&mut out, results)?;
    for set in Set::ALL {
        tables(&mut out, results, set)?;
    }
    failures(&mut out, results)?;
    method(&mut out, results)?;
    commands(&mut out, results)?;
    Ok(out)
}

fn number(value: f64) -> String {
    match value {
        v if v.is_nan() => "-".to_owned(),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn with_range(spread: Spread) -> String {
    format!("{} ({}-{})", number(spread.median), number(spread.min), number(spread.max))
}

fn summary(out: &mut String, results: &Results) -> fmt::Result {
    out.push_str("## In short\n\nMedians, and how many times more the best peer takes. The best peer is chosen for each figure.\n\n");
    out.push_str("| data | operation | wall s | best peer | times | CPU s | best peer | times |\n");
    out.push_str("|---|---|---:|---|---:|---:|---|---:|\n");
    for set in Set::ALL {
        for operation in Operation::ALL {
            let rows = rows(results, set, operation);
            let Some((ours, peers)) = against(&rows) else { continue };
            write!(out, "| {set} | {} ", name(operation))?;
            for of in [|row: &Row<'_>| row.wall(), |row: &Row<'_>| row.cpu()] {
                let mine = of(ours).median;
                write!(out, "| {} ", number(mine))?;
                match least(&peers, |row| of(row).median) {
                    Some(best) => {
                        let theirs = of(best).median;
                        write!(out, "| {} {} | {:.1} ", best.variant, number(theirs), theirs / mine)?;
                    }
                    None => out.push_str("| - | - "),
                }
            }
            out.push_str("|\n");
        }
    }
    out.push('\n');
    Ok(())
}

fn expected(out: &mut String, results: &Results) -> fmt::Result {
    let all = expectations(results);
    if all.is_empty() {
        return Ok(());
    }
    out.push_str("## What is expected\n\n| expected | found | |\n|---|---|---|\n");
    for one in all {
        writeln!(out, "| {} | {} | {} |", one.what, one.found, if one.met { "met" } else { "**not met**" })?;
    }
    out.push('\n');
    Ok(())
}

fn describe(set: Set) -> &'static str {
    match set {
        Set::Random => {
            "One file of bytes that no codec makes smaller; changed: 2 % overwritten in place, one run of 8 to 504 KiB \
             at any 8 KiB page in every 12.5 MiB"
        }
        Set::Database => "One file of slotted 8 KiB database pages (synthetic); changed like `random`",
        Set::Usr => {
            "A copy of `/usr`; changed: 2 % of its files, half of them rewritten, a quarter removed, a quarter added"
        }
        Set::Image => {
            "A sparse ext4 image with system files, a database and media, mostly empty; changed: 2 % of the files and \
             2 % of the database and the media, through the file system"
        }
    }
}

fn tables(out: &mut String, results: &Results, set: Set) -> fmt::Result {
    let Some(data) = results.data.get(&set) else { return Ok(()) };
    writeln!(
        out,
        "## {set}\n\n{}. {:.0} MiB, {:.0} MiB on disk, {} file{}.\n",
        describe(set),
        mib(data.extent.logical),
        mib(data.extent.allocated),
        data.extent.files,
        if data.extent.files == 1 { "" } else { "s" }
    )?;
    let full = rows(results, set, Operation::Full);
    for operation in Operation::ALL {
        let rows = rows(results, set, operation);
        if rows.is_empty() {
            continue;
        }
        let tradewind = against(&rows).map(|(ours, _)| (ours.wall().median, ours.cpu().median));
        let last = match operation {
            Operation::Full => "repository MiB",
            Operation::Incremental => "added MiB",
            Operation::Restore => "on disk MiB",
        };
        writeln!(out, "### {set}: {}\n", name(operation))?;
        writeln!(
            out,
            "| tool | wall s | CPU s | peak RSS MiB | {last} | wall, times tradewind's | CPU, times tradewind's |"
        )?;
        out.push_str("|---|---:|---:|---:|---:|---:|---:|\n");
        for row in &rows {
            let stored = match operation {
                Operation::Full => row.repository().median,
                Operation::Incremental => {
                    let before =
                        full.iter().find(|f| f.variant == row.variant).map(|f| f.repository().median);
                    row.repository().median - before.unwrap_or(f64::NAN)
                }
                Operation::Restore => row.allocated().median,
            };
            let (wall, cpu) = tradewind.unwrap_or((f64::NAN, f64::NAN));
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} |",
                row.variant,
                with_range(row.wall()),
                with_range(row.cpu()),
                number(row.rss().median),
                number(stored),
                number(row.wall().median / wall),
                number(row.cpu().median / cpu),
            )?;
        }
        out.push('\n');
    }
    notes(out, results, set)
}

/// What a reader of the tables has to know about single rows.
fn notes(out: &mut String, results: &Results, set: Set) -> fmt::Result {
    let mut lines = BTreeSet::new();
    for run in results.runs.iter().filter(|run| run.set == set) {
        if run.measured.exit != 0 {
            let operation = name(run.operation);
            lines.insert(format!(
                "{} ended its {operation} with exit code {}",
                run.variant, run.measured.exit
            ));
        }
    }
    for variant in Variant::all() {
        // Rounds differ a little, so a kind has its smallest and its largest count.
        let mut lost: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for run in results.runs.iter().filter(|run| run.set == set && run.variant == variant) {
            for (kind, &count) in &run.differences {
                let (least, most) = lost.entry(kind).or_insert((count, count));
                (*least, *most) = (count.min(*least), count.max(*most));
            }
        }
        let list: Vec<String> = lost
            .iter()
            .map(
                |(kind, (least, most))| {
                    if least == most { format!("{kind} {least}") } else { format!("{kind} {least}-{most}") }
                },
            )
            .collect();
        if !list.is_empty() {
            lines.insert(format!("{variant} did not restore all metadata: {}", list.join(", ")));
        }
    }
    if !lines.is_empty() {
        for line in lines {
            writeln!(out, "- {line}.")?;
        }
        out.push('\n');
    }
    Ok(())
}

fn failures(out: &mut String, results: &Results) -> fmt::Result {
    if results.failures.is_empty() {
        return Ok(());
    }
    out.push_str("## Rounds without figures\n\n");
    for failure in &results.failures {
        let error = failure.error.replace(['\n', '|'], " ");
        writeln!(out, "- {} {} round {}: {error}", failure.set, failure.variant, failure.repeat)?;
    }
    out.push('\n');
    Ok(())
}

fn method(out: &mut String, results: &Results) -> fmt::Result {
    out.push_str("## How it was measured\n\n");
    for machine in &results.machines {
        describe_machine(out, machine)?;
    }
    out.push_str(
        "- Rounds: an empty encrypted repository, full backup, a change of 2 %, incremental backup, restore of the \
         last. The tools take turns (A B C A B C), so that a slow minute hits all of them. Cells are the median of \
         the rounds, with the smallest and the largest in parentheses.\n\
         - Wall is from the start of the command until the file system is synced after it, for every operation. CPU \
         is user and kernel time of the process and its children, from `wait4`; peak RSS likewise, of the largest \
         process. Writing back dirty pages after the fact is done by kernel threads and is in nobody's CPU figure.\n\
         - Source and repository are on the same disk. The page cache is emptied before each command; a tool's own \
         cache is as its backup left it, and its program is loaded.\n\
         - After every restore all bytes are compared with the source, and for trees names, types, link targets, \
         modes, owners, times and hard links too. A round whose restore is wrong gives no figures.\n\
         - `tool` is the tool at its defaults, `tool-best` with the settings that suit this data; the commands are \
         below. The changed version is at the same path as the first one.\n\
         - kopia does not compress at its defaults, and borg uses lz4; compare repository sizes with that in mind.\n\
         - borg's 1 MiB fixed chunks are a middle way: larger ones take less CPU and store more of each change.\n",
    );
    noise(out, results)
}

fn describe_machine(out: &mut String, machine: &Machine) -> fmt::Result {
    writeln!(
        out,
        "- {}: {} x {}, {:.0} GiB of memory, {}, {}, {} file system, {}. Rounds: {}. Scale: {}.",
        machine.date,
        machine.processors,
        machine.processor,
        machine.memory_gib,
        machine.system,
        machine.kernel,
        machine.file_system,
        if machine.root { "as root" } else { "not as root, so sources came from memory" },
        machine.repeat,
        machine.scale,
    )?;
    let versions: Vec<String> =
        machine.versions.iter().map(|(tool, said)| format!("{}: `{said}`", tool.program())).collect();
    writeln!(out, "- Versions: {}.", versions.join("; "))
}

/// How quiet the machine was.
fn noise(out: &mut String, results: &Results) -> fmt::Result {
    let processors = results.machines.first().map_or(1, |m| m.processors).max(1) as f64;
    let share = |seconds: fn(&crate::measure::Measured) -> f64| {
        let shares = results.runs.iter().filter(|run| run.measured.wall > 0.0);
        Spread::of(shares.map(move |run| seconds(&run.measured) / run.measured.wall / processors * 100.0))
    };
    let (Some(other), Some(steal)) = (share(|m| m.other), share(|m| m.steal)) else { return Ok(()) };
    let busy = results.runs.iter().filter(|run| run.measured.busy_before >= 0.1).count();
    let warm = results.runs.iter().filter(|run| !run.measured.cold).count();
    writeln!(
        out,
        "- Noise: before each command the harness waits for a quiet machine (less than 10 % busy). {busy} of {} \
         commands began on a machine that was not quiet, {warm} with a warm page cache. While a command ran, everything \
         else on the machine, kernel threads that write back its data included, took {:.1} % of the processors \
         (median; {:.1}-{:.1} %), and the hypervisor {:.1} % ({:.1}-{:.1} %).",
        results.runs.len(),
        other.median,
        other.min,
        other.max,
        steal.median,
        steal.min,
        steal.max
    )?;
    let of = |pick: fn(&Row<'_>) -> Spread| {
        let all = Set::ALL.into_iter().flat_map(|set| Operation::ALL.map(|operation| (set, operation)));
        let rows = all.flat_map(|(set, operation)| rows(results, set, operation));
        Spread::of(
            rows.map(|row| pick(&row)).filter(|s| s.median > 0.0).map(|s| (s.max - s.min) / s.median * 100.0),
        )
    };
    if let (Some(wall), Some(cpu)) = (of(|row: &Row<'_>| row.wall()), of(|row: &Row<'_>| row.cpu())) {
        writeln!(
            out,
            "- Between rounds, the slowest and the fastest wall time of a cell are {:.0} % of its median apart (median of \
             the cells; at worst {:.0} %), CPU times {:.0} % (at worst {:.0} %). A difference smaller than that is \
             none. CPU time is the steadier figure: the disk behind a virtual machine is not ours alone.\n",
            wall.median, wall.max, cpu.median, cpu.max
        )?;
    }
    Ok(())
}

fn commands(out: &mut String, results: &Results) -> fmt::Result {
    out.push_str(
        "## Commands\n\nThe incremental backup is the same command as the full one (borg: another archive name). Each \
         block: making the repository, backup, restore. Repository and passphrase of tradewind, restic and kopia come \
         from the environment.\n\n",
    );
    for variant in Variant::all() {
        let mut shown: Vec<(&[String], Vec<String>)> = Vec::new();
        for (set, data) in &results.data {
            let Some(commands) = data.commands.get(&variant) else { continue };
            match shown.iter_mut().find(|(known, _)| known == commands) {
                Some((_, sets)) => sets.push(set.to_string()),
                None => shown.push((commands, vec![set.to_string()])),
            }
        }
        for (commands, sets) in shown {
            writeln!(out, "{variant} ({}):\n\n```\n{}\n```\n", sets.join(", "), commands.join("\n"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Extent;
    use crate::record::{Data, Failure};

    #[test]
    fn a_report_has_its_parts() {
        let mut results = crate::figures::tests::sample(5.0, 3.0);
        let variant: Variant = "borg-best".parse().unwrap();
        let extent = Extent { logical: 4 << 30, allocated: 4 << 30, files: 1 };
        let commands = [
            (variant, vec!["borg init".to_owned()]),
            (Variant::TRADEWIND, vec!["tradewind init".to_owned()]),
        ];
        let set = Set::Random;
        results.data.insert(set, Data { set, extent, commands: commands.into() });
        results.runs[5].measured.exit = 1;
        results.runs[5].differences = [("hard link".to_owned(), 12), ("mode".to_owned(), 3)].into();
        results.runs[11].differences = [("hard link".to_owned(), 12), ("mode".to_owned(), 1)].into();
        results.failures.push(Failure {
            set,
            variant,
            repeat: 4,
            error: "WRONG RESTORE: at byte 7".to_owned(),
        });
        results.machines.push(Machine { scale: "1/16".to_owned(), processors: 2, ..Machine::default() });
        let text = render(&results).unwrap();
        for part in [
            "**Scale 1/16",
            "| random | full | 7.00 | borg-best 22.0 | 3.1 | 3.00 | borg-best 20.0 | 6.7 |",
            "| met |",
            "4096 MiB, 4096 MiB on disk, 1 file.",
            "| tradewind | 7.00 (6.00-8.00) | 3.00 (3.00-3.00) | 0.00 | 105 | 1.00 | 1.00 |",
            "| borg-best | 22.0 (21.0-23.0) | 20.0 (20.0-20.0) | 0.00 | 100 | 3.14 | 6.67 |",
            "- borg-best ended its restore with exit code 1.",
            "- borg-best did not restore all metadata: hard link 12, mode 1-3.",
            "- random borg-best round 4: WRONG RESTORE: at byte 7",
            "of 18 commands began",
            "borg-best (random):\n\n```\nborg init\n```",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        let nothing = render(&Results::default()).unwrap();
        assert!(nothing.starts_with("# Benchmarks"));
    }
}
