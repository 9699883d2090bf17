//! Running the system's programs: losetup, mount, mkfs and so on.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Where the programs are, also for a caller whose PATH has no folders of the administrator.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a program to its end.
pub(crate) fn output<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> io::Result<Output> {
    Command::new(program).args(arguments).env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::null()).output()
}

/// Runs a program that must succeed; returns what it wrote, without the white space around.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String> {
    let line = || {
        let words = arguments.iter().map(|word| word.as_ref().to_string_lossy().into_owned());
        [program.to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
    };
    let output = output(program, arguments)
        .with_context(|| format!("`{}` could not be run: is {program} installed?", line()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
        bail!("`{}` failed ({}): {said}", line(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_command_and_what_it_said() {
        assert_eq!(run("echo", &["a", "b"]).unwrap(), "a b");
        let error = run("sh", &["-c", "echo first >&2; echo second >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("sh -c"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("first; second"), "{error}");
        let error = run::<&str>("no-such-program", &[]).unwrap_err().to_string();
        assert!(error.contains("is no-such-program installed?"), "{error}");
    }
}
