//! The raw results: JSON lines, appended as they are made, one header before the runs that belong to it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::compare::Differences;
use crate::data::{Extent, Scale, Set};
use crate::measure::{self, Measured};
use crate::tools::{Operation, Tool, Tools, Variant};

/// One line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    Machine(Machine),
    Data(Data),
    Run(Run),
    Failure(Failure),
}

/// Where and with what it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    pub(crate) system: String,
    pub(crate) file_system: String,
    pub(crate) root: bool,
    pub(crate) scale: String,
    pub(crate) repeat: u32,
    pub(crate) versions: BTreeMap<Tool, String>,
}

/// One data set and the commands that were run on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Data {
    pub(crate) set: Set,
    pub(crate) extent: Extent,
    pub(crate) commands: BTreeMap<Variant, Vec<String>>,
}

/// One measured command, kept only when the restore of its round was right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) set: Set,
    pub(crate) variant: Variant,
    pub(crate) repeat: u32,
    pub(crate) operation: Operation,
    #[serde(flatten)]
    pub(crate) measured: Measured,
    /// Bytes of all files of the repository afterwards.
    pub(crate) repository: u64,
    /// Bytes allocated for what was restored.
    pub(crate) allocated: u64,
    /// What a restored tree lost of its metadata.
    pub(crate) differences: Differences,
}

/// A round that gave no figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) set: Set,
    pub(crate) variant: Variant,
    pub(crate) repeat: u32,
    pub(crate) error: String,
}

/// Everything in a file of raw results.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) machines: Vec<Machine>,
    pub(crate) data: BTreeMap<Set, Data>,
    pub(crate) runs: Vec<Run>,
    pub(crate) failures: Vec<Failure>,
}

impl Results {
    /// Reads a file; a missing file holds nothing. A last line that was cut is passed over.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let mut results = Self::default();
        let text = if path.exists() { fs::read_to_string(path)? } else { String::new() };
        for (number, line) in text.split_inclusive('\n').enumerate().filter(|(_, line)| line.ends_with('\n'))
        {
            let line = serde_json::from_str(line)
                .with_context(|| format!("{} line {}: not a raw result", path.display(), number + 1))?;
            match line {
                Line::Machine(machine) if results.machines.contains(&machine) => {}
                Line::Machine(machine) => results.machines.push(machine),
                Line::Data(data) => drop(results.data.insert(data.set, data)),
                Line::Run(run) => results.runs.push(run),
                Line::Failure(failure) => results.failures.push(failure),
            }
        }
        // A round that failed and was then repeated with success is no failure any more.
        let runs = &results.runs;
        let done =
            |f: &Failure| runs.iter().any(|r| (r.set, r.variant, r.repeat) == (f.set, f.variant, f.repeat));
        results.failures.retain(|failure| !done(failure));
        Ok(results)
    }

    /// Has this round all its figures?
    pub(crate) fn has(&self, set: Set, variant: Variant, repeat: u32) -> bool {
        let runs =
            self.runs.iter().filter(|run| (run.set, run.variant, run.repeat) == (set, variant, repeat));
        runs.count() == Operation::ALL.len()
    }
}

/// Appends lines to a file.
pub(crate) struct Raw(File);

impl Raw {
    /// Opens `path`; what is in it stays when `keep`.
    pub(crate) fn open(path: &Path, keep: bool) -> Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        if !keep && path.exists() {
            fs::rename(path, path.with_added_extension("previous"))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(file.with_context(|| format!("opening {}", path.display()))?))
    }

    /// Appends whole lines with one write.
    pub(crate) fn append(&mut self, lines: &[Line]) -> Result<()> {
        let mut text = String::new();
        for line in lines {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        self.0.write_all(text.as_bytes()).context("writing the raw results")
    }
}

fn field(text: &str, name: &str, separator: char) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(separator));
    line.unwrap_or_default().trim().trim_matches('"').to_owned()
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

impl Machine {
    /// Looks at this machine. `dir` is where the data and the repositories are.
    pub(crate) fn look(dir: &Path, scale: Scale, repeat: u32, tools: &Tools, variants: &[Variant]) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory = field(&read("/proc/meminfo"), "MemTotal", ':');
        let memory: f64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
        Self {
            date: said("date", &["-u", "+%Y-%m-%d"]),
            processor: field(&read("/proc/cpuinfo"), "model name", ':'),
            processors: measure::processors(),
            memory_gib: memory / f64::from(1 << 20),
            kernel: said("uname", &["-sr"]),
            system: field(&read("/etc/os-release"), "PRETTY_NAME", '='),
            file_system: said("findmnt", &["-n", "-o", "FSTYPE", "--target", &dir.display().to_string()]),
            root: rustix::process::geteuid().is_root(),
            scale: scale.to_string(),
            repeat,
            versions: variants.iter().map(|v| (v.tool, tools.version(v.tool))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(repeat: u32, operation: Operation) -> Line {
        Line::Run(Run {
            set: Set::Usr,
            variant: "borg-best".parse().unwrap(),
            repeat,
            operation,
            measured: Measured { wall: 1.5, ..Measured::default() },
            repository: 7,
            allocated: 0,
            differences: [("mode".to_owned(), 2)].into(),
        })
    }

    #[test]
    fn what_was_written_is_read_and_a_cut_line_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder/raw.jsonl");
        assert!(Results::read(&path).unwrap().runs.is_empty());
        let mut raw = Raw::open(&path, true).unwrap();
        let variant = "borg-best".parse().unwrap();
        let failure = |repeat| {
            let error = "no".to_owned();
            Line::Failure(Failure { set: Set::Usr, variant, repeat, error })
        };
        raw.append(&[failure(1), failure(2)]).unwrap();
        raw.append(&Operation::ALL.map(|operation| run(1, operation))).unwrap();
        raw.append(&[run(2, Operation::Full)]).unwrap();
        raw.0.write_all(b"{\"run\":{\"set\":").unwrap();
        let results = Results::read(&path).unwrap();
        assert_eq!(results.runs.len(), 4);
        assert_eq!(results.runs[0].differences.get("mode"), Some(&2));
        assert!(results.has(Set::Usr, variant, 1) && !results.has(Set::Usr, variant, 2));
        assert!(results.failures.is_empty(), "both rounds have figures now");
        drop(Raw::open(&path, false).unwrap());
        assert!(Results::read(&path).unwrap().runs.is_empty());
        assert!(dir.path().join("folder/raw.jsonl.previous").exists());
    }

    #[test]
    fn fields_are_found() {
        assert_eq!(field("a: 1\nmodel name\t: Some CPU\n", "model name", ':'), "Some CPU");
        assert_eq!(field("NAME=\"x\"\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME", '='), "Debian 12");
    }
}
