//! What was typed and what the environment says, as one set of values. Flags win.

use std::ffi::OsString;
use std::path::PathBuf;

use tradewind_pipeline::{Error, Result};

use crate::args::{Global, NewKeyArgs};
use crate::secret::{Flags, Origin};

/// Flags of the key that opens the repository.
pub(crate) const KEY_FLAGS: Flags = Flags { password: "--password-file", key: "--key-file" };

/// Flags of a new key.
pub(crate) const NEW_KEY_FLAGS: Flags = Flags { password: "--new-password-file", key: "--new-key-file" };

/// Values that hold for every command on a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where the repository is.
    pub(crate) repository: String,
    /// Where its key comes from.
    pub(crate) key: Origin,
    /// S3 endpoint.
    pub(crate) endpoint: Option<String>,
    /// S3 region.
    pub(crate) region: Option<String>,
    /// S3: the bucket goes into the path.
    pub(crate) path_style: bool,
    /// Certificates to trust.
    pub(crate) ca_file: Option<PathBuf>,
    /// Where caches live.
    pub(crate) cache_dir: Option<PathBuf>,
}

impl Settings {
    /// Flags first, then the environment.
    pub(crate) fn new(global: &Global) -> Result<Self> {
        Self::with(global, |name| std::env::var_os(name))
    }

    fn with(global: &Global, env: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let repository = match &global.repository {
            Some(location) => location.clone(),
            None => env("TRADEWIND_REPOSITORY")
                .ok_or_else(|| {
                    Error::Usage(
                        "no repository given: use --repository or set TRADEWIND_REPOSITORY".to_owned(),
                    )
                })?
                .into_string()
                .map_err(|_| Error::Usage("TRADEWIND_REPOSITORY is not UTF-8".to_owned()))?,
        };
        if repository.is_empty() {
            return Err(Error::Usage("the repository's location is empty".to_owned()));
        }
        let cache_dir = global
            .cache_dir
            .clone()
            .or_else(|| env("TRADEWIND_CACHE_DIR").map(PathBuf::from))
            .or_else(|| env("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("tradewind")))
            .or_else(|| env("HOME").map(|dir| PathBuf::from(dir).join(".cache/tradewind")));
        Ok(Self {
            repository,
            key: key(global, env)?,
            endpoint: global.endpoint.clone(),
            region: global.region.clone(),
            path_style: global.path_style,
            ca_file: global.ca_file.clone(),
            cache_dir,
        })
    }
}

/// The key's origin: one flag, else one variable, else a prompt.
fn key(global: &Global, env: impl Fn(&str) -> Option<OsString>) -> Result<Origin> {
    let flags = [
        global.password_file.clone().map(Origin::PasswordFile),
        global.password_fd.map(Origin::PasswordFd),
        global.key_file.clone().map(Origin::KeyFile),
    ];
    if let Some(origin) = only(flags, "--password-file, --password-fd and --key-file")? {
        return Ok(origin);
    }
    let variables = [
        env("TRADEWIND_PASSWORD_FILE").map(|path| Origin::PasswordFile(path.into())),
        env("TRADEWIND_KEY_FILE").map(|path| Origin::KeyFile(path.into())),
    ];
    let origin = only(variables, "the variables TRADEWIND_PASSWORD_FILE and TRADEWIND_KEY_FILE")?;
    Ok(origin.unwrap_or(Origin::Prompt))
}

/// The origin of a new key; never the environment, which names the present one.
pub(crate) fn new_key(args: &NewKeyArgs) -> Result<Origin> {
    let flags = [
        args.new_password_file.clone().map(Origin::PasswordFile),
        args.new_password_fd.map(Origin::PasswordFd),
        args.new_key_file.clone().map(Origin::KeyFile),
    ];
    let origin = only(flags, "--new-password-file, --new-password-fd and --new-key-file")?;
    Ok(origin.unwrap_or(Origin::Prompt))
}

fn only<const N: usize>(origins: [Option<Origin>; N], names: &str) -> Result<Option<Origin>> {
    let mut given = origins.into_iter().flatten();
    let first = given.next();
    match given.next() {
        None => Ok(first),
        Some(_) => Err(Error::Usage(format!("give only one of {names}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;
    use crate::args;

    fn settings(line: &str, variables: &[(&str, &str)]) -> Result<Settings> {
        let words = std::iter::once("tradewind").chain(line.split_whitespace()).map(OsString::from);
        let cli = args::parse(words).unwrap();
        Settings::with(&cli.global, |name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn flags_win_over_the_environment() {
        let variables = [
            ("TRADEWIND_REPOSITORY", "/env"),
            ("TRADEWIND_PASSWORD_FILE", "/env/pass"),
            ("TRADEWIND_CACHE_DIR", "/env/cache"),
            ("HOME", "/root"),
        ];
        let s = settings("stats", &variables).unwrap();
        assert_eq!(s.repository, "/env");
        assert_eq!(s.key, Origin::PasswordFile("/env/pass".into()));
        assert_eq!(s.cache_dir, Some("/env/cache".into()));
        let s = settings("stats --repository s3://b/p --key-file k --cache-dir c", &variables).unwrap();
        assert_eq!(s.repository, "s3://b/p");
        assert_eq!(s.key, Origin::KeyFile("k".into()));
        assert_eq!(s.cache_dir, Some("c".into()));
    }

    #[test]
    fn the_cache_has_a_home() {
        let s = settings("stats -r r", &[("HOME", "/home/x"), ("XDG_CACHE_HOME", "")]).unwrap();
        assert_eq!(s.cache_dir, Some("/home/x/.cache/tradewind".into()));
        let s = settings("stats -r r", &[("HOME", "/home/x"), ("XDG_CACHE_HOME", "/c")]).unwrap();
        assert_eq!(s.cache_dir, Some("/c/tradewind".into()));
        assert_eq!(settings("stats -r r", &[]).unwrap().cache_dir, None);
    }

    #[test]
    fn exactly_one_key() {
        let both = [("TRADEWIND_PASSWORD_FILE", "p"), ("TRADEWIND_KEY_FILE", "k")];
        assert!(settings("stats -r r", &both).is_err());
        assert_eq!(settings("stats -r r --password-fd 3", &both).unwrap().key, Origin::PasswordFd(3));
        assert!(settings("--key-file a stats -r r --password-file b", &[]).is_err());
        assert_eq!(settings("stats -r r", &[]).unwrap().key, Origin::Prompt);
    }

    #[test]
    fn a_repository_is_needed() {
        let error = settings("stats", &[("TRADEWIND_REPOSITORY", "")]).unwrap_err().to_string();
        assert!(error.contains("--repository") && error.contains("TRADEWIND_REPOSITORY"), "{error}");
    }
}
