//! The tools that are measured: one description each, at its defaults and at its best settings for the data.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::data::Set;

/// A program that makes backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tool {
    Tradewind,
    Restic,
    Borg,
    Kopia,
}

/// A tool with its settings. Tradewind is measured at its defaults only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Variant {
    pub(crate) tool: Tool,
    pub(crate) best: bool,
}

/// What is measured of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    Full,
    Incremental,
    Restore,
}

impl Operation {
    /// In the order in which they run.
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::Incremental, Self::Restore];
}

/// One command.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) folder: PathBuf,
    /// Exit codes that are a success: 0, and the one that says "done, but look at the log".
    pub(crate) accepted: Vec<i32>,
}

/// Where one run finds everything.
pub(crate) struct Places {
    /// The repository; absent before `init`.
    pub(crate) repository: PathBuf,
    /// The folder with the one entry that is backed up.
    pub(crate) source: PathBuf,
    /// An existing empty folder.
    pub(crate) target: PathBuf,
    /// Stands for the home directory: caches and configuration.
    pub(crate) home: PathBuf,
    pub(crate) password_file: PathBuf,
}

/// The passphrase of every repository that is measured; there is nothing to protect.
pub(crate) const PASSWORD: &str = "measured, then deleted";

const ALL: [(Tool, &str, &str); 4] = [
    (Tool::Tradewind, "tradewind", "cargo build --release -p tradewind-mover"),
    (Tool::Restic, "restic", "apt-get install restic"),
    (Tool::Borg, "borg", "apt-get install borgbackup"),
    (Tool::Kopia, "kopia", "tests/setup.sh peers (needs Go)"),
];

impl Tool {
    /// The name of its program.
    pub(crate) fn program(self) -> &'static str {
        ALL.iter().find(|t| t.0 == self).map_or("", |t| t.1)
    }

    /// What makes it present.
    pub(crate) fn remedy(self) -> &'static str {
        ALL.iter().find(|t| t.0 == self).map_or("", |t| t.2)
    }
}

impl Variant {
    /// Tradewind, against which everything is compared.
    pub(crate) const TRADEWIND: Self = Self { tool: Tool::Tradewind, best: false };

    /// Every variant, in the order in which they take turns.
    pub(crate) fn all() -> Vec<Self> {
        let peers = [Tool::Restic, Tool::Borg, Tool::Kopia];
        let of = |tool| [false, true].map(|best| Self { tool, best });
        std::iter::once(Self::TRADEWIND).chain(peers.into_iter().flat_map(of)).collect()
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.tool.program(), if self.best { "-best" } else { "" })
    }
}

impl FromStr for Variant {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::all().into_iter().find(|v| v.to_string() == name);
        known.with_context(|| {
            let names: Vec<String> = Self::all().iter().map(ToString::to_string).collect();
            format!("{name} is none of {}", names.join(", "))
        })
    }
}

impl From<Variant> for String {
    fn from(variant: Variant) -> Self {
        variant.to_string()
    }
}

impl TryFrom<String> for Variant {
    type Error = anyhow::Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

/// The programs found on this machine.
#[derive(Default)]
pub(crate) struct Tools {
    paths: BTreeMap<Tool, PathBuf>,
    restic_help: String,
}

fn executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The folder into which `tests/setup.sh` installs.
fn installed() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|c| !c.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("tradewind/bin"))
}

/// `name`, or the newest `name-VERSION`, in `folder`.
fn program_in(folder: &Path, name: &str) -> Option<PathBuf> {
    let plain = folder.join(name);
    if executable(&plain) {
        return Some(plain);
    }
    let prefix = format!("{name}-");
    let versioned = |path: &PathBuf| {
        let rest = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(&prefix));
        rest.is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit())) && executable(path)
    };
    let version = |path: &PathBuf| -> Vec<u64> {
        let name = path.to_string_lossy();
        name.rsplit('-').next().unwrap_or_default().split('.').map(|n| n.parse().unwrap_or(0)).collect()
    };
    folder.read_dir().ok()?.flatten().map(|entry| entry.path()).filter(versioned).max_by_key(version)
}

fn says(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned()).unwrap_or_default()
}

impl Tools {
    /// Looks the tools up: beside this program for tradewind, on PATH, and where `tests/setup.sh` installs.
    pub(crate) fn find(tradewind: Option<&Path>) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let here = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()));
        let mut tools = Self::default();
        for (tool, name, _) in ALL {
            let beside = here.clone().filter(|_| tool == Tool::Tradewind);
            let mut folders = beside.into_iter().chain(std::env::split_paths(&path)).chain(installed());
            let found = match tradewind {
                Some(given) if tool == Tool::Tradewind => Some(given.to_path_buf()).filter(|p| executable(p)),
                _ => folders.find_map(|folder| program_in(&folder, name)),
            };
            if let Some(found) = found.and_then(|found| found.canonicalize().ok()) {
                tools.paths.insert(tool, found);
            }
        }
        if let Some(restic) = tools.paths.get(&Tool::Restic) {
            tools.restic_help = says(restic, &["backup", "--help"]) + &says(restic, &["restore", "--help"]);
        }
        tools
    }

    /// The wanted variants that can run. A missing peer is left out, loudly; a missing tradewind is an error.
    pub(crate) fn present(&self, wanted: &[Variant]) -> Result<Vec<Variant>> {
        let (present, missing): (Vec<Variant>, Vec<Variant>) =
            wanted.iter().partition(|variant| self.paths.contains_key(&variant.tool));
        for variant in missing {
            let (name, remedy) = (variant.tool.program(), variant.tool.remedy());
            if variant == Variant::TRADEWIND {
                bail!("tradewind binary not found: {remedy}");
            }
            eprintln!("!!! {variant} IS LEFT OUT: no `{name}` on PATH nor in the cache folder: {remedy}");
        }
        if present.is_empty() {
            bail!("none of the tools is installed");
        }
        Ok(present)
    }

    /// What the tool says about its version.
    pub(crate) fn version(&self, tool: Tool) -> String {
        let Some(program) = self.paths.get(&tool) else { return "absent".to_owned() };
        let args = if matches!(tool, Tool::Tradewind | Tool::Restic) { "version" } else { "--version" };
        let said = says(program, &[args]);
        let line = said.lines().next().unwrap_or_default();
        line.split(" build").next().unwrap_or_default().trim().to_owned()
    }

    fn step(&self, tool: Tool, folder: &Path, args: &[&str]) -> Step {
        let program = self.paths.get(&tool).map_or(tool.program().to_owned(), |p| p.display().to_string());
        let accepted = match tool {
            Tool::Tradewind | Tool::Restic => vec![0, 3],
            Tool::Borg => vec![0, 1],
            Tool::Kopia => vec![0],
        };
        Step {
            program,
            args: args.iter().map(ToString::to_string).collect(),
            folder: folder.into(),
            accepted,
        }
    }

    /// The environment of every command of a tool. Nothing outside of the work folder is read or written.
    pub(crate) fn environment(tool: Tool, places: &Places) -> Vec<(String, String)> {
        let home = |below: &str| places.home.join(below).display().to_string();
        let repository = places.repository.display().to_string();
        let password_file = places.password_file.display().to_string();
        let own: Vec<(&str, String)> = match tool {
            Tool::Tradewind => {
                vec![("TRADEWIND_REPOSITORY", repository), ("TRADEWIND_PASSWORD_FILE", password_file)]
            }
            Tool::Restic => vec![
                ("RESTIC_REPOSITORY", repository),
                ("RESTIC_PASSWORD_FILE", password_file),
                ("RESTIC_CACHE_DIR", home("restic")),
            ],
            Tool::Borg => vec![("BORG_PASSPHRASE", PASSWORD.to_owned()), ("BORG_BASE_DIR", home("borg"))],
            Tool::Kopia => vec![
                ("KOPIA_PASSWORD", PASSWORD.to_owned()),
                ("KOPIA_CONFIG_PATH", home("kopia/repository.config")),
                ("KOPIA_CACHE_DIRECTORY", home("kopia/cache")),
                ("KOPIA_LOG_DIR", home("kopia/log")),
                ("KOPIA_CHECK_FOR_UPDATES", "false".to_owned()),
            ],
        };
        let everyone =
            [("HOME", home("")), ("XDG_CACHE_HOME", home(".cache")), ("XDG_CONFIG_HOME", home(".config"))];
        let everyone = everyone.into_iter().chain([("LC_ALL", "C.UTF-8".to_owned())]);
        everyone.chain(own).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The commands that make an empty encrypted repository; not measured.
    pub(crate) fn init(&self, variant: Variant, set: Set, places: &Places) -> Vec<Step> {
        let repository = &*places.repository.to_string_lossy();
        let step = |args: &[&str]| self.step(variant.tool, &places.home, args);
        match variant.tool {
            Tool::Tradewind => vec![step(&["init"])],
            Tool::Restic => vec![step(&["init"])],
            Tool::Borg => {
                // Its two kinds of authentication differ in speed: HMAC-SHA256 wins where the processor has SHA.
                let sha = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.contains(" sha_ni"));
                let mode = if variant.best && !sha { "repokey-blake2" } else { "repokey" };
                vec![step(&["init", "--encryption", mode, repository])]
            }
            Tool::Kopia => {
                let mut create = vec!["repository", "create", "filesystem", "--path", repository];
                let mut policy = vec!["policy", "set", "--global"];
                if variant.best {
                    create.push("--block-hash=BLAKE3-256-128");
                    if set.is_volume() {
                        create.push("--object-splitter=FIXED-1M");
                        policy.push("--parallel-upload-above-size-mib=128");
                    }
                    policy.push(if set == Set::Random {
                        "--compression=none"
                    } else {
                        "--compression=zstd-fastest"
                    });
                }
                let mkdir = Step { program: "mkdir".to_owned(), ..step(&[repository]) };
                let policy = variant.best.then(|| step(&policy));
                [mkdir, step(&create)].into_iter().chain(policy).collect()
            }
        }
    }

    /// The command that makes a full backup, or the one after the change.
    pub(crate) fn backup(&self, variant: Variant, set: Set, places: &Places, archive: &str) -> Step {
        let entry = set.entry();
        let path = places.source.join(entry).display().to_string();
        let cache = places.home.join("tradewind").display().to_string();
        let target = format!("{}::{archive}", places.repository.display());
        let folder = places.source.display().to_string();
        let mut args: Vec<&str> = Vec::new();
        match variant.tool {
            Tool::Tradewind => args.extend(["backup", &path, "--volume", entry, "--cache-dir", &cache]),
            Tool::Restic => {
                args.extend(["backup", entry]);
                if variant.best {
                    args.extend(["--pack-size", "64", "--compression"]);
                    args.push(if set == Set::Random { "off" } else { "auto" });
                    args.extend(["--no-scan"].iter().filter(|flag| self.restic_help.contains(**flag)));
                }
            }
            Tool::Borg => {
                args.push("create");
                if variant.best {
                    args.extend(["--compression", if set == Set::Random { "none" } else { "zstd,1" }]);
                    if set.is_volume() {
                        args.extend(["--chunker-params", "fixed,1048576", "--sparse"]);
                    }
                }
                args.extend([&*target, entry]);
            }
            Tool::Kopia => args.extend(["snapshot", "create", &folder]),
        }
        self.step(variant.tool, &places.source, &args)
    }

    /// The command that restores the last backup below the target folder.
    pub(crate) fn restore(&self, variant: Variant, set: Set, places: &Places, archive: &str) -> Step {
        let path = places.target.join(set.entry()).display().to_string();
        let cache = places.home.join("tradewind").display().to_string();
        let target = places.target.display().to_string();
        let source = places.source.display().to_string();
        let archive = format!("{}::{archive}", places.repository.display());
        let sparse = variant.best && set == Set::Image;
        let mut args: Vec<&str> = Vec::new();
        match variant.tool {
            Tool::Tradewind => {
                args.extend(["restore", "latest", "--volume", set.entry(), "--target", &path]);
                args.extend(["--cache-dir", &cache]);
            }
            Tool::Restic => {
                args.extend(["restore", "latest", "--target", &target]);
                if sparse && self.restic_help.contains("--sparse") {
                    args.push("--sparse");
                }
            }
            Tool::Borg => {
                args.push("extract");
                if sparse {
                    args.push("--sparse");
                }
                args.push(&archive);
            }
            Tool::Kopia => {
                args.push("restore");
                if sparse {
                    args.push("--write-sparse-files");
                }
                args.extend([&*source, &*target]);
            }
        }
        self.step(variant.tool, &places.target, &args)
    }

    /// The commands of a variant as a reader can repeat them, with words instead of paths.
    pub(crate) fn commands(&self, variant: Variant, set: Set) -> Vec<String> {
        let places = Places {
            repository: "REPOSITORY".into(),
            source: "SOURCE".into(),
            target: "TARGET".into(),
            home: "HOME".into(),
            password_file: "PASSWORD-FILE".into(),
        };
        let mut steps = self.init(variant, set, &places);
        steps.push(self.backup(variant, set, &places, "full"));
        steps.push(self.restore(variant, set, &places, "changed"));
        let name = |step: &Step| if step.program == "mkdir" { "mkdir" } else { variant.tool.program() };
        steps.iter().map(|step| format!("{} {}", name(step), step.args.join(" "))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_have_names() {
        for variant in Variant::all() {
            assert_eq!(variant.to_string().parse::<Variant>().unwrap(), variant);
        }
        assert!("tradewind-best".parse::<Variant>().unwrap_err().to_string().contains("restic-best"));
    }

    #[test]
    fn a_missing_tradewind_is_an_error_and_a_missing_peer_is_not() {
        let mut tools = Tools::default();
        let error = tools.present(&Variant::all()).unwrap_err().to_string();
        assert_eq!(error, "tradewind binary not found: cargo build --release -p tradewind-mover");
        tools.paths.insert(Tool::Tradewind, "/bin/true".into());
        assert_eq!(tools.present(&Variant::all()).unwrap(), [Variant::TRADEWIND]);
        assert!(tools.present(&["borg".parse().unwrap()]).is_err());
    }

    #[test]
    fn the_newest_installed_version_is_taken() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for name in ["kopia-0.9.1", "kopia-0.23.1", "kopia-x", "kopiax", "kopia-0.24.0.build"] {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            let mode = if name.ends_with("build") { 0o644 } else { 0o755 };
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(program_in(dir.path(), "kopia").unwrap(), dir.path().join("kopia-0.23.1"));
        assert_eq!(program_in(dir.path(), "restic"), None);
    }

    #[test]
    fn commands_show_words_instead_of_paths() {
        let tools = Tools::default();
        let show = |variant: &str, set| tools.commands(variant.parse().unwrap(), set);
        assert_eq!(
            show("tradewind", Set::Image),
            [
                "tradewind init",
                "tradewind backup SOURCE/volume.img --volume volume.img --cache-dir HOME/tradewind",
                "tradewind restore latest --volume volume.img --target TARGET/volume.img --cache-dir HOME/tradewind",
            ]
        );
        assert!(show("borg-best", Set::Image)[1].contains("--chunker-params fixed,1048576 --sparse"));
        assert!(!show("borg", Set::Image).concat().contains("--sparse"));
        assert!(show("kopia-best", Set::Usr).concat().contains("--compression=zstd-fastest"));
        assert_eq!(show("kopia", Set::Usr).len(), 4);
    }
}
