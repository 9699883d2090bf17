//! Volumes there and back, as scripts move them.

use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::json;
use crate::repository::Bed;

/// The last line of what a command wrote as JSON.
fn last(text: &str) -> Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

/// Starts a command that reads what the test writes.
fn piped(bed: &Bed, words: &[&str]) -> Child {
    let mut command = bed.command(&bed.path("pass"), words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn an_image_there_and_back_and_what_has_changed() {
    let bed = Bed::new();
    let image = bed.path("disk.img");
    let mut bytes = noise(3 << 20, 1);
    bytes[1 << 20..2 << 20].fill(0);
    bytes.extend_from_slice(b"odd end");
    std::fs::write(&image, &bytes).unwrap();
    let image = image.to_str().unwrap();
    let first = bed.run(&["backup", image, "--volume", "disk", "--tag", "of=test", "--json"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let first = last(&first.stdout);
    assert_eq!((&first["message_type"], &first["command"]), (&"summary".into(), &"backup".into()));

    bytes[5000] ^= 1;
    std::fs::write(image, &bytes).unwrap();
    let second = last(&bed.run(&["backup", image, "--volume", "disk", "--json"]).stdout);
    assert_eq!(second["parent"], first["snapshot"]);
    assert_eq!(second["counters"]["chunks_new"], 1);
    assert_eq!(second["counters"]["new_bytes"], 256 << 10);

    let list = json(&bed.run(&["snapshots", "--volume", "disk", "--json"]).stdout);
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 2);
    let list = json(&bed.run(&["snapshots", "--tag", "of=test", "--json"]).stdout);
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 1);

    let back = bed.path("back.img");
    let restored =
        bed.run(&["restore", "latest", "--volume", "disk", "--target", back.to_str().unwrap(), "--json"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    assert_eq!(std::fs::read(&back).unwrap(), bytes);
    assert_eq!(last(&restored.stdout)["counters"]["written_bytes"].as_u64().unwrap(), (2 << 20) + 7);
    let again = bed.run(&["restore", "latest", "--volume", "disk", "--target", back.to_str().unwrap()]);
    assert_eq!(again.code, 9, "a target that has something is refused: {}", again.stderr);

    let (one, two) = (first["snapshot"].as_str().unwrap(), second["snapshot"].as_str().unwrap());
    let changes = bed.run(&["diff", one, two, "--json"]).stdout;
    let change: Value = serde_json::from_str(changes.lines().next().unwrap()).unwrap();
    assert_eq!((&change["offset_bytes"], &change["length_bytes"]), (&0.into(), &(256 << 10).into()));
    let verified = bed.run(&["verify", "--read-data", "--json"]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    let expected = bed.run(&["verify", "--expect", "000000000000000000000000"]);
    assert_eq!(expected.code, 5, "{}", expected.stderr);
}

#[test]
fn a_tree_there_and_back_in_part_and_whole() {
    let bed = Bed::new();
    let tree = bed.path("tree");
    std::fs::create_dir_all(tree.join("deep/er")).unwrap();
    std::fs::write(tree.join("deep/er/file"), noise(3 << 20, 2)).unwrap();
    std::fs::write(tree.join("deep/note.txt"), "a note").unwrap();
    std::fs::write(tree.join("left.out"), "not this").unwrap();
    std::os::unix::fs::symlink("nowhere", tree.join("link")).unwrap();
    let source = tree.to_str().unwrap();
    let options = ["--volume", "tree", "--exclude", "*.out", "--json"];
    let made = bed.run(&[&["backup", source][..], &options].concat());
    assert_eq!(made.code, 0, "{}", made.stderr);
    let made = last(&made.stdout);
    assert_eq!((&made["counters"]["files"], &made["counters"]["others"]), (&2.into(), &1.into()));

    let listed = bed.run(&["ls", "latest", "--volume", "tree", "--recursive"]).stdout;
    assert!(listed.contains("deep/note.txt") && !listed.contains("left.out"), "{listed}");
    let note = bed.run(&["cat", "latest:deep/note.txt", "--volume", "tree"]);
    assert_eq!((note.code, note.stdout.as_str()), (0, "a note"), "{}", note.stderr);

    // Read again, into another bundle, because another file came before it: still no difference in contents.
    std::fs::write(tree.join("deep/before.txt"), "new").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    std::fs::set_permissions(tree.join("deep/note.txt"), mode).unwrap();
    let again = last(&bed.run(&[&["backup", source][..], &options].concat()).stdout);
    let (one, two) = (made["snapshot"].as_str().unwrap(), again["snapshot"].as_str().unwrap());
    let changes = bed.run(&["diff", one, two, "--json"]).stdout;
    let changes = changes.lines().map(|line| serde_json::from_str(line).unwrap());
    let changes: Vec<(Value, Value)> = changes
        .map(|c: Value| (c["path"].clone(), c["change"].clone()))
        .filter(|(p, _)| p.is_string())
        .collect();
    let expected = [("deep", "metadata"), ("deep/before.txt", "added"), ("deep/note.txt", "metadata")];
    assert_eq!(changes, expected.map(|(path, change)| (path.into(), change.into())));

    let restore = |to: &str, more: &[&str]| {
        let target = bed.path(to);
        let words = ["restore", "latest", "--volume", "tree", "--target", target.to_str().unwrap()];
        let ran = bed.run(&[&words[..], more].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        target
    };
    let whole = restore("whole", &[]);
    assert_eq!(std::fs::read(whole.join("deep/er/file")).unwrap(), noise(3 << 20, 2));
    assert_eq!(std::fs::read_link(whole.join("link")).unwrap().to_str(), Some("nowhere"));
    assert!(!whole.join("left.out").exists());
    let nothing = bed.path("nothing");
    let words = [
        "restore",
        "latest",
        "--volume",
        "tree",
        "--target",
        nothing.to_str().unwrap(),
        "--include",
        "*.none",
    ];
    assert_eq!((bed.run(&words).code, nothing.exists()), (2, false));
    let part = restore("part", &["--include", "*.txt"]);
    assert!(part.join("deep/note.txt").exists() && !part.join("deep/er").exists());
}

#[test]
fn a_dry_run_writes_nothing() {
    let bed = Bed::new();
    std::fs::write(bed.path("disk.img"), noise(1 << 20, 3)).unwrap();
    let objects = || std::fs::read_dir(bed.path("repo")).unwrap().count();
    let before = objects();
    let image = bed.path("disk.img");
    let ran = bed.run(&["backup", image.to_str().unwrap(), "--dry-run", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(last(&ran.stdout)["snapshot"], Value::Null);
    assert_eq!(objects(), before);
    assert_eq!(json(&bed.run(&["snapshots", "--json"]).stdout)["snapshots"], Value::Array(vec![]));
}

#[test]
fn standard_input_there_and_standard_output_back() {
    let bed = Bed::new();
    let bytes = noise((9 << 20) + 5, 4);
    let mut child = piped(&bed, &["backup", "-", "--volume", "stream"]);
    let mut input = child.stdin.take().unwrap();
    for piece in bytes.chunks(77_777) {
        input.write_all(piece).unwrap();
    }
    drop(input);
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let words = ["restore", "latest", "--volume", "stream", "--target", "-"];
    let back = bed.command(&bed.path("pass"), &words).output().unwrap();
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    assert!(back.stdout == bytes, "other bytes came back");
}

#[test]
fn an_interrupt_ends_a_backup_whose_source_is_silent_and_the_next_uses_what_was_stored() {
    let bed = Bed::new();
    let bytes = noise(24 << 20, 5);
    let mut child = piped(&bed, &["backup", "-", "--volume", "stream", "--checkpoint-interval", "1s"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(&bytes).unwrap();
    // Until a checkpoint has recorded what was stored.
    let recorded = || bed.path("repo/index").read_dir().is_ok_and(|mut entries| entries.next().is_some());
    let begun = std::time::Instant::now();
    while !recorded() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    drop(input);
    assert_eq!(json(&bed.run(&["snapshots", "--json"]).stdout)["snapshots"], Value::Array(vec![]));

    std::fs::write(bed.path("bytes"), &bytes).unwrap();
    let image = bed.path("bytes");
    let next = bed.run(&["backup", image.to_str().unwrap(), "--volume", "stream", "--json"]);
    assert_eq!(next.code, 0, "{}", next.stderr);
    assert!(last(&next.stdout)["counters"]["chunks_reused"].as_u64().unwrap() > 0, "{}", next.stdout);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_written() {
    let bed = Bed::new();
    let image = bed.path("disk.img");
    std::fs::write(&image, noise(1 << 20, 6)).unwrap();
    let image = image.to_str().unwrap();
    assert_eq!(bed.run(&["backup", image, "--volume", "disk", "--exclude", "x"]).code, 2);
    assert_eq!(bed.run(&["backup", image, "--volume", "disk", "-q"]).code, 0);
    let target = bed.path("target");
    let to = target.to_str().unwrap();
    for words in [
        &["restore", "latest:x", "--volume", "disk", "--target", to][..],
        &["restore", "latest", "--volume", "disk", "--target", to, "--include", "x"],
        &["backup", bed.path("").to_str().unwrap(), "--exclude", "./sub"],
        &["cat", "latest:x"],
    ] {
        let ran = bed.run(words);
        assert_eq!(ran.code, 2, "{words:?}: {}", ran.stderr);
        assert!(!target.exists(), "{words:?}");
    }
    let huge = ["backup", image, "--volume", "disk", "--memory", "16777215TiB", "--json"];
    assert_eq!(
        last(&bed.run(&huge).stdout)["counters"]["chunks_new"],
        0,
        "a budget nobody has is no reason to fail"
    );
    let closed = bed.run(&["backup", "-", "--volume", "nothing"]);
    assert_eq!(closed.code, 8, "a null device is no source: {}", closed.stderr);
}

#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let bed = Bed::new();
    let fifo = bed.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let ran = bed.run(&["backup", fifo.to_str().unwrap()]);
    assert_eq!(ran.code, 8, "{}", ran.stderr);
}

#[test]
fn what_takes_privileges_is_left_out_and_said() {
    use std::os::unix::fs::PermissionsExt as _;
    let bed = Bed::new();
    let tree = bed.path("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("plain"), "plain").unwrap();
    std::fs::write(tree.join("tool"), "tool").unwrap();
    std::fs::set_permissions(tree.join("tool"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::symlink(std::ffi::OsString::from_vec(b"x\xff".to_vec()), tree.join("link")).unwrap();
    assert_eq!(bed.run(&["backup", tree.to_str().unwrap(), "--volume", "tree", "-q"]).code, 0);
    let listed = bed.run(&["ls", "-l", "latest"]).stdout;
    assert!(listed.contains("link -> x\\xff"), "{listed}");
    let back = bed.path("back");
    let words =
        ["restore", "latest", "--target", back.to_str().unwrap(), "--privileged-metadata", "off", "--json"];
    let restored = bed.run(&words);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    assert_eq!(last(&restored.stdout)["counters"]["unprivileged"], 1);
    assert!(
        restored.stderr.contains(
            "without the owner, setuid bits or attributes of the snapshot, which takes privileges: 1"
        ),
        "{}",
        restored.stderr
    );
    assert_eq!(back.join("tool").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn an_interrupted_run_whose_reader_left_is_not_done() {
    let bed = Bed::new();
    let image = bed.path("disk.img");
    std::fs::write(&image, noise(16 << 20, 7)).unwrap();
    let words = ["backup", image.to_str().unwrap(), "--volume", "disk", "--json", "--upload-rate", "1MiB"];
    let mut child = {
        let mut command = bed.command(&bed.path("pass"), &words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // One line of progress, then nobody reads any more.
    let mut first = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    drop(child.stdout.take());
    // A line of progress comes once a second: by then one could not be written.
    std::thread::sleep(Duration::from_secs(2));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn every_skipped_item_is_named_in_a_log() {
    let bed = Bed::new();
    let tree = bed.path("tree");
    std::fs::create_dir(&tree).unwrap();
    // Devices, whose restore needs privileges; so does making them.
    for n in 0..60 {
        let path = tree.join(format!("device-{n}"));
        let kind = rustix::fs::FileType::CharacterDevice;
        if rustix::fs::mknodat(rustix::fs::CWD, &path, kind, 0o600.into(), rustix::fs::makedev(1, 3)).is_err()
        {
            eprintln!("skipped: devices cannot be made here");
            return;
        }
    }
    assert_eq!(bed.run(&["backup", tree.to_str().unwrap(), "--volume", "tree", "-q"]).code, 0);
    let back = bed.path("back");
    let words =
        ["restore", "latest", "--target", back.to_str().unwrap(), "--privileged-metadata", "off", "-q"];
    let restored = bed.run(&words);
    assert_eq!(restored.code, 3, "{}", restored.stderr);
    assert_eq!(restored.stderr.matches("skipped: device-").count(), 60, "{}", restored.stderr);
}

#[test]
fn a_file_into_a_closed_pipe_ends_quietly_and_a_volume_does_not() {
    let bed = Bed::new();
    let image = bed.path("disk.img");
    std::fs::write(&image, noise(8 << 20, 8)).unwrap();
    assert_eq!(bed.run(&["backup", image.to_str().unwrap(), "--volume", "disk", "-q"]).code, 0);
    for (words, code) in [(&["cat", "latest"][..], 0), (&["restore", "latest", "--target", "-", "-q"], 9)] {
        let mut child = piped(&bed, words);
        let mut first = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{words:?}: {said}");
        assert_eq!(
            (said.contains("standard output"), said.contains("panicked")),
            (code == 9, false),
            "{said}"
        );
    }
}
