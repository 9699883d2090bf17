//! The style of the tree, as tests: what a reviewer would otherwise have to remember.
//!
//! Each rule names every place that breaks it. Where a rule is in the way of something better, change the rule here,
//! in the same commit, and say why.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says what it looked at, and fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Crates and folders with sources.
const PLACES: [&str; 9] = ["pipeline", "k8s", "agent", "deploy", "mover", "benches", "perf", "tests", ".ci"];

/// One source file: its path below the root of the repository, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Its lines, numbered from 1, without comments that take a whole line or end one.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| {
            let comment = line.find("// ").or_else(|| line.find("///")).or_else(|| line.find("//!"));
            (i + 1, &line[..comment.unwrap_or(line.len())])
        })
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn name(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        name.rsplit_once('.').map_or(name, |(stem, _)| stem)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && !["target", "__pycache__", "data"].contains(&name.as_str()) {
            files_below(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

/// All sources: Rust, Python, shell.
fn sources() -> Vec<Source> {
    let root = root();
    let mut paths = Vec::new();
    for place in PLACES {
        files_below(&root.join(place), &mut paths);
    }
    paths.sort();
    let is_source = |p: &PathBuf| {
        let name = p.to_string_lossy();
        [".rs", ".py", ".sh", ".ci/run"].iter().any(|end| name.ends_with(end))
    };
    let all: Vec<Source> = paths
        .into_iter()
        .filter(is_source)
        .map(|p| Source {
            path: p.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(),
            text: fs::read_to_string(&p).unwrap(),
        })
        .collect();
    assert!(all.len() > 100, "only {} sources found below {}", all.len(), root.display());
    all
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Fails with all of `broken`, one a line.
fn none(rule: &str, broken: impl IntoIterator<Item = String>) {
    let broken: Vec<String> = broken.into_iter().collect();
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// True when `line` uses the crate `name`: `name::` that is no part of a longer path or name.
fn uses_crate(line: &str, name: &str) -> bool {
    let mut rest = line;
    while let Some(at) = rest.find(name) {
        let before = rest[..at].chars().next_back();
        let after = &rest[at + name.len()..];
        let whole = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        if whole
            && (after.starts_with("::") || (line.trim_start().starts_with("use ") && after.starts_with(';')))
        {
            return true;
        }
        rest = after;
    }
    false
}

/// The words of a line: identifiers and keywords.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

#[test]
fn no_file_is_long() {
    let lines = |s: &Source| s.text.lines().count();
    none(
        "over 800 lines, to be split",
        sources().iter().filter(|s| lines(s) > 800).map(|s| format!("{}: {} lines", s.path, lines(s))),
    );
}

#[test]
fn unsafe_code_lives_in_three_files() {
    const ALLOWED: [&str; 3] = ["pipeline/src/heap.rs", "pipeline/src/io/buf.rs", "pipeline/src/io/uring.rs"];
    let mut broken = Vec::new();
    for s in sources().iter().filter(|s| s.is_rust() && !ALLOWED.contains(&s.path.as_str())) {
        for (n, line) in s.code().filter(|(_, l)| !l.contains('"')) {
            if words(line).any(|w| w == "unsafe" || w == "unsafe_code") {
                broken.push(format!("{}:{n}: {}", s.path, line.trim()));
            }
        }
    }
    none("unsafe code outside of heap.rs, io/buf.rs and io/uring.rs", broken);
}

#[test]
fn crates_stay_behind_their_fences() {
    /// Who may use which crate: beginnings of paths.
    const FENCES: &[(&str, &[&str])] = &[
        ("io_uring", &["pipeline/src/io/uring.rs"]),
        ("aws_sdk_s3", &["pipeline/src/store/s3"]),
        ("aws_config", &["pipeline/src/store/s3"]),
        ("aws_runtime", &["pipeline/src/store/s3"]),
        ("aws_smithy_http_client", &["pipeline/src/store/s3"]),
        ("aws_smithy_runtime_api", &["pipeline/src/store/s3"]),
        ("aws_smithy_types", &["pipeline/src/store/s3"]),
        ("hyper_rustls", &["pipeline/src/store/s3/unverified.rs"]),
        ("md5", &["pipeline/src/store/s3/encryption.rs"]), // a header of Amazon's, no protection
        // Beside sealing: SHA-256 of payloads that no TLS protects and of long labels, and a MAC's comparison in constant
        // time.
        (
            "aws_lc_rs",
            &[
                "pipeline/src/seal/",
                "pipeline/src/store/s3/intercept.rs",
                "pipeline/src/index/page.rs",
                "k8s/src/labels.rs",
                "agent/src/handover.rs",   // tokens are compared
                "agent/src/repository.rs", // names of files
            ],
        ),
        ("zstd_safe", &["pipeline/src/seal/compress.rs"]),
        ("argon2", &["pipeline/src/seal/keys.rs"]),
        ("crc_fast", &["pipeline/src/store.rs", "pipeline/src/store/"]),
        ("globset", &["pipeline/src/patterns.rs"]),
        ("clap", &["mover/src/args", "perf/src/"]),
        ("clap_complete", &["mover/src/args.rs", "mover/src/commands/completions.rs"]),
        ("indicatif", &["mover/src/output.rs", "mover/src/progress.rs"]),
        // Errors of the product have kinds; those of measurements and tests are for people.
        ("anyhow", &["perf/"]),
    ];
    let mut broken = Vec::new();
    // The crate of the tests looks at the product from outside, with the same tools.
    for s in sources().iter().filter(|s| s.is_rust() && !s.path.starts_with("tests/")) {
        for (name, allowed) in FENCES.iter().filter(|(_, a)| !a.iter().any(|place| s.path.starts_with(place)))
        {
            for (n, line) in s.code().filter(|(_, line)| uses_crate(line, name)) {
                broken.push(format!(
                    "{}:{n}: {name} belongs to {}: {}",
                    s.path,
                    allowed.join(", "),
                    line.trim()
                ));
            }
        }
    }
    none("used outside of its fence", broken);
}

#[test]
fn stations_name_only_whom_they_may() {
    /// What a station of the pipeline may name of its own crate, beside itself, `error`, `heap`, `progress` and
    /// `temp`.
    const MAY: &[(&str, &[&str])] = &[
        ("source", &["entry", "io", "patterns"]),
        ("io", &[]),
        ("chunk", &["seal"]), // the gear table's key
        ("entry", &["hash", "pack"]),
        ("hash", &["seal"]),         // the ids' key
        ("seal", &["hash", "pack"]), // what a frame is bound to
        ("store", &["limits"]),
        ("pack", &["hash", "io", "page", "seal", "store"]), // page: which part of one its id covers
        ("index", &["hash", "pack", "seal", "store"]),
        ("page", &["entry", "hash", "index", "limits", "pack", "seal", "store"]), // limits: the pace of fetches
        ("manifest", &["chunk", "entry", "hash", "pack", "repository", "seal", "session", "store"]),
        ("limits", &[]),
        ("progress", &[]),
    ];
    let mut broken = Vec::new();
    for s in sources().iter().filter(|s| s.is_rust() && !s.path.contains("test")) {
        let Some(rest) = s.path.strip_prefix("pipeline/src/") else { continue };
        let station = rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs");
        let Some((_, may)) = MAY.iter().find(|(name, _)| *name == station) else { continue };
        // What follows a file's tests' beginning is about tests.
        for (n, line) in s.code().take_while(|(_, line)| !line.starts_with("#[cfg(test)]")) {
            for (at, _) in line.match_indices("crate::") {
                let other = words(&line[at + "crate::".len()..]).next().unwrap_or_default();
                let shared = ["error", "heap", "progress", "temp"].contains(&other)
                    || other.starts_with(char::is_uppercase);
                if !shared && other != station && !may.contains(&other) {
                    broken.push(format!("{}:{n}: {station} must not know {other}", s.path));
                }
            }
            // These are called by plain threads, which nothing may suspend.
            if ["source", "io", "chunk", "hash", "seal"].contains(&station) && uses_crate(line, "tokio") {
                broken.push(format!("{}:{n}: {station} must not know of a runtime", s.path));
            }
        }
    }
    none("stations that know too much", broken);
}

#[test]
fn crates_import_whom_they_may() {
    /// Crates of ours that a crate may depend on.
    const MAY: [(&str, &[&str]); 9] = [
        ("pipeline", &[]),
        ("k8s", &[]),
        ("agent", &["tradewind-k8s", "tradewind-pipeline"]),
        ("mover", &["tradewind-agent", "tradewind-pipeline"]),
        ("benches", &["tradewind-pipeline"]),
        ("perf", &[]), // drives programs only
        ("tests", &["tradewind-pipeline"]),
        ("tests/cluster", &["tradewind-tests"]),
        ("tests/cluster/driver", &[]),
    ];
    let mut broken = Vec::new();
    for (name, may) in MAY {
        for line in read(&format!("{name}/Cargo.toml")).lines().filter(|l| l.contains("workspace = true")) {
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if dependency.starts_with("tradewind-") && !may.contains(&dependency) {
                broken.push(format!("{name}/Cargo.toml: {dependency}"));
            }
        }
    }
    none("dependencies against the order of the crates", broken);
}

#[test]
fn no_module_is_a_bag() {
    const BAGS: [&str; 9] =
        ["utils", "util", "common", "helpers", "helper", "misc", "shared", "types", "mod"];
    none(
        "named after nothing that it does",
        sources().iter().filter_map(|s| {
            let folders = s.path.split('/').rev().skip(1);
            folders.chain([s.name()]).any(|part| BAGS.contains(&part)).then(|| s.path.clone())
        }),
    );
}

#[test]
fn every_file_is_declared() {
    let all = sources();
    let mut broken = Vec::new();
    for s in all.iter().filter(|s| s.is_rust()) {
        let folder = s.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let (owner, _) = folder.rsplit_once('/').unwrap_or_default();
        // Files that are targets of their own: Cargo finds them by their place or by the manifest.
        let target = ["lib", "main", "build"].contains(&s.name())
            || ["benches", "examples", "bin"].iter().any(|d| folder.ends_with(d))
            || folder.split('/').skip(1).eq(["tests"]);
        if target {
            continue;
        }
        let parents = [
            format!("{folder}.rs"),
            format!("{folder}/lib.rs"),
            format!("{folder}/main.rs"),
            format!("{owner}/main.rs"),
        ];
        let declared = format!("mod {};", s.name());
        let is_declared =
            |p: &Source| parents.contains(&p.path) && p.code().any(|(_, line)| line.contains(&declared));
        if !all.iter().any(is_declared) {
            broken.push(s.path.clone());
        }
    }
    none("compiled by nobody: declare them with `mod`, or delete them", broken);
}

#[test]
fn nothing_is_left_over() {
    // Put together, so that this file does not find itself.
    let marks: Vec<String> = [
        ("dbg", "!("),
        ("todo", "!("),
        ("unimplemented", "!("),
        ("FIX", "ME"),
        ("XX", "X:"),
        ("//! place", "holder"),
    ]
    .iter()
    .map(|(a, b)| format!("{a}{b}"))
    .collect();
    let mut broken = Vec::new();
    for s in sources() {
        for (n, line) in s.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                broken.push(format!("{}:{}: {}", s.path, n + 1, line.trim()));
            }
        }
    }
    none("left over", broken);
}

#[test]
fn every_counter_is_documented() {
    let text = read("pipeline/src/progress.rs");
    let (_, body) = text.split_once("pub enum Counter {").unwrap();
    let (body, _) = body.split_once('}').unwrap();
    let counters: BTreeSet<&str> = body
        .lines()
        .map(str::trim)
        .filter(|l| !l.starts_with("//"))
        .map(|l| l.trim_end_matches(','))
        .collect();
    let json = read("mover/JSON.md");
    let mut broken = Vec::new();
    // `name: get(Counter::Variant)` is how the command line exposes one.
    for line in read("mover/src/output/messages.rs").lines().filter(|l| l.contains("get(Counter::")) {
        let (field, variant) = line.trim().split_once(": ").unwrap();
        let variant = words(variant).nth(2).unwrap_or_default();
        if !counters.contains(variant) {
            broken.push(format!("{variant} is no counter"));
        }
        if !json.contains(&format!("| `{field}` |")) {
            broken.push(format!("{field} ({variant}) is not in mover/JSON.md"));
        }
    }
    none("counters", broken);
}

#[test]
fn the_flow_is_the_same_everywhere() {
    const FLOW: &str = "source ─► io ─► chunk ─► index ─► seal ─► pack ─► store ─► manifest";
    let places = ["README.md", "ARCHITECTURE.md", "pipeline/src/lib.rs", "pipeline/src/backup.rs"];
    none(
        "does not show the flow",
        places.iter().filter(|p| !read(p).contains(FLOW)).map(|p| (*p).to_owned()),
    );
    let missing = FLOW.split(" ─► ").filter(|station| {
        let module = root().join("pipeline/src").join(format!("{station}.rs"));
        !module.is_file()
    });
    none("a station without a module", missing.map(str::to_owned));
}

#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    let scripts = sources().into_iter().filter(|s| s.text.starts_with("#!/"));
    let mode = |path: &str| fs::metadata(root().join(path)).unwrap().permissions().mode();
    none("begins with #!/ and is not executable", scripts.map(|s| s.path).filter(|p| mode(p) & 0o100 == 0));
}

#[test]
fn documents_name_what_exists() {
    let root = root();
    let mut paths = Vec::new();
    files_below(&root.join("pipeline"), &mut paths);
    files_below(&root.join("mover"), &mut paths);
    files_below(&root.join("tests"), &mut paths);
    paths.extend(fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()));
    let mut broken = Vec::new();
    for document in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let folder = document.parent().unwrap();
        let text = fs::read_to_string(document).unwrap();
        let name = document.strip_prefix(&root).unwrap().display();
        // `[text](path)` and `[text](path#section)`.
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            let local = !target.is_empty() && !target.contains("://");
            if local && !folder.join(target).exists() {
                broken.push(format!("{name}: link to {target}"));
            }
        }
        // `pipeline/src/...`, `tests/...` and so on, in backquotes.
        for path in text.split('`').skip(1).step_by(2) {
            let plain = path.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
            let ours = PLACES.iter().any(|place| path.starts_with(&format!("{place}/")));
            if plain && ours && !root.join(path).exists() {
                broken.push(format!("{name}: {path}"));
            }
        }
    }
    none("named by a document, but not there", broken);
}
