//! The measurement itself: every round is full backup, change, incremental backup, restore, comparison; the tools
//! take turns (A B C A B C), so that a slow minute of the machine hits all of them alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::compare::{Differences, compare};
use crate::data::{Scale, Set, Source};
use crate::measure::{self, Measured};
use crate::record::{Data, Failure, Line, Machine, Raw, Results, Run};
use crate::tools::{Operation, PASSWORD, Places, Step, Tool, Tools, Variant};
use crate::tree;

/// For so long after many files were removed none is made: ext4 looks at every inode that was freed in the last minute
/// before it takes another (`recently_deleted` in Linux's fs/ext4/ialloc.c), and a restore that follows the removal of
/// the last one takes several times its time. The fastest tool would suffer most.
const FORGOTTEN: Duration = Duration::from_secs(61);

/// What is to be measured.
pub(crate) struct Plan {
    pub(crate) dir: PathBuf,
    pub(crate) scale: Scale,
    pub(crate) sets: Vec<Set>,
    pub(crate) variants: Vec<Variant>,
    pub(crate) repeat: u32,
    pub(crate) raw: PathBuf,
    pub(crate) resume: bool,
    pub(crate) patience: Duration,
    pub(crate) cold: bool,
}

/// Runs the plan; returns the number of rounds that failed.
pub(crate) fn run(plan: &Plan, tools: &Tools) -> Result<usize> {
    measure::check()?;
    let variants = tools.present(&plan.variants)?;
    fs::create_dir_all(&plan.dir).with_context(|| format!("making {}", plan.dir.display()))?;
    if !rustix::process::geteuid().is_root() {
        eprintln!("!!! not root: the page cache cannot be emptied, so sources are read from memory");
    }
    let earlier = if plan.resume { Results::read(&plan.raw)? } else { Results::default() };
    let machine = Machine::look(&plan.dir, plan.scale, plan.repeat, tools, &variants);
    if let Some(other) = earlier.machines.iter().find(|m| m.scale != machine.scale) {
        bail!("{} was measured at scale {}: choose another --raw", plan.raw.display(), other.scale);
    }
    let mut raw = Raw::open(&plan.raw, plan.resume)?;
    raw.append(&[Line::Machine(machine)])?;
    let mut failed = 0;
    for set in &plan.sets {
        let source = Source::new(&plan.dir, *set, plan.scale);
        println!("{set}: preparing");
        source.prepare().with_context(|| format!("making the data set {set}"))?;
        let extent = source.extent()?;
        enough_room(&plan.dir, extent.logical + extent.allocated)?;
        let mut removed = Instant::now();
        let commands = variants.iter().map(|v| (*v, tools.commands(*v, *set))).collect();
        raw.append(&[Line::Data(Data { set: *set, extent, commands })])?;
        for repeat in 1..=plan.repeat {
            for variant in variants.iter().filter(|v| !earlier.has(*set, **v, repeat)) {
                let round = Round { plan, tools, source: &source, variant: *variant, repeat, removed };
                match round.run() {
                    Ok(runs) => raw.append(&runs.map(Line::Run))?,
                    Err(error) => {
                        let error = format!("{error:#}").replace(&*plan.dir.to_string_lossy(), "DIR");
                        eprintln!("!!! {set} {variant} round {repeat} FAILED: {error}");
                        let failure = Failure { set: *set, variant: *variant, repeat, error };
                        raw.append(&[Line::Failure(failure)])?;
                        failed += 1;
                    }
                }
                source.prepare().with_context(|| format!("taking back the change of {set}"))?;
                removed = Instant::now();
            }
        }
    }
    let _ = fs::remove_dir_all(plan.dir.join("work"));
    Ok(failed)
}

/// A repository and a restore that writes every hole must fit.
fn enough_room(dir: &Path, needed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir)?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < needed {
        bail!("{} has {} MiB free, {} are needed", dir.display(), free >> 20, needed >> 20);
    }
    Ok(())
}

fn bytes_below(folder: &Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let (mut length, mut allocated) = (0, 0);
    tree::walk(folder, &mut |_, meta| {
        if meta.is_file() {
            length += meta.len();
            allocated += meta.blocks() * 512;
        }
        Ok(())
    })?;
    Ok((length, allocated))
}

struct Round<'a> {
    plan: &'a Plan,
    tools: &'a Tools,
    source: &'a Source,
    variant: Variant,
    repeat: u32,
    /// When the files of the round before were gone.
    removed: Instant,
}

impl Round<'_> {
    fn run(&self) -> Result<[Run; 3]> {
        let work = self.plan.dir.join("work");
        if work.exists() {
            fs::remove_dir_all(&work).context("removing what the last round left")?;
        }
        let places = Places {
            repository: work.join("repository"),
            source: self.source.folder(),
            target: work.join("target"),
            home: work.join("home"),
            password_file: work.join("password"),
        };
        fs::create_dir_all(&places.target)?;
        fs::create_dir_all(&places.home)?;
        fs::write(&places.password_file, PASSWORD)?;
        let log = work.join("log");
        let env = Tools::environment(self.variant.tool, &places);
        let set = self.source.set;
        for step in self.tools.init(self.variant, set, &places) {
            measure::run(&step, &env, &log)?;
        }
        let measured = |operation, step: Step| -> Result<Run> {
            let measured = measure::measure(&step, &env, &work, &log, self.plan.patience, self.plan.cold)?;
            self.show(operation, &measured);
            Ok(Run {
                set,
                variant: self.variant,
                repeat: self.repeat,
                operation,
                measured,
                repository: bytes_below(&places.repository)?.0,
                allocated: bytes_below(&places.target)?.1,
                differences: Differences::new(),
            })
        };
        let full = measured(Operation::Full, self.tools.backup(self.variant, set, &places, "full"))?;
        self.source.change()?;
        let step = self.tools.backup(self.variant, set, &places, "changed");
        let incremental = measured(Operation::Incremental, step)?;
        let step = self.tools.restore(self.variant, set, &places, "changed");
        if self.plan.cold && !set.is_volume() {
            std::thread::sleep(FORGOTTEN.saturating_sub(self.removed.elapsed()));
        }
        let mut restore = measured(Operation::Restore, step)?;
        restore.differences = compare(&self.source.entry(), &places.target.join(set.entry()))
            .context("WRONG RESTORE: no figure of this round counts")?;
        if self.variant.tool == Tool::Tradewind && !restore.differences.is_empty() {
            bail!("WRONG RESTORE: metadata differs: {:?}", restore.differences);
        }
        fs::remove_dir_all(&work)?;
        Ok([full, incremental, restore])
    }

    fn show(&self, operation: Operation, m: &Measured) {
        println!(
            "{:<9}{:<13}{}  {:<12} wall {:>7.2} s  cpu {:>7.2} s  rss {:>5.0} MiB  others' cpu {:>5.2} s{}",
            self.source.set.to_string(),
            self.variant.to_string(),
            self.repeat,
            format!("{operation:?}").to_lowercase(),
            m.wall,
            m.cpu(),
            m.rss,
            m.other + m.steal,
            if m.exit == 0 { String::new() } else { format!("  (exit code {})", m.exit) },
        );
    }
}
