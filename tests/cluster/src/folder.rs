//! Where a cluster keeps everything: one folder for each level, and what is in it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// How much of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// etcd and the API server, for tests of objects: no controller runs, nothing that is deleted in the background
    /// goes away, no pod starts. Needs no root where user namespaces are allowed.
    Api,
    /// The whole node: containers, volumes, snapshots, an S3 server. Needs root.
    Node,
}

impl Level {
    /// `api` or `node`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Node => "node",
        }
    }
}

/// Inside, these are the cluster's own, so that what is in the machine's is not seen there.
pub(crate) const OWN: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// Which folder of the machine hides `path` from a node, if one does.
pub(crate) fn hidden(path: &Path) -> Option<&'static str> {
    OWN.into_iter().chain(["/proc", "/sys"]).find(|hidden| path.starts_with(hidden))
}

/// The folder of one cluster. Everything that a cluster writes is below it.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
    /// What runs in it.
    pub level: Level,
}

impl Folder {
    /// The folder of the user's cluster of that level: below `$TRADEWIND_CLUSTER`, by default
    /// `${XDG_CACHE_HOME:-~/.cache}/tradewind/cluster`.
    ///
    /// # Errors
    /// Where no place is named and there is no home, or the place is one that the cluster hides from itself.
    pub fn of(level: Level) -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let above = match (set("TRADEWIND_CLUSTER"), set("XDG_CACHE_HOME"), set("HOME")) {
            (Some(place), _, _) => place,
            (None, Some(cache), _) => cache.join("tradewind/cluster"),
            (None, None, Some(home)) => home.join(".cache/tradewind/cluster"),
            (None, None, None) => {
                bail!("no home: say with TRADEWIND_CLUSTER=/folder where the cluster shall be")
            }
        };
        fs::create_dir_all(&above).with_context(|| format!("making {}", above.display()))?;
        let above = above.canonicalize().with_context(|| format!("finding {}", above.display()))?;
        if let Some(hidden) = hidden(&above) {
            bail!("{} is below {hidden}: name another folder with TRADEWIND_CLUSTER", above.display());
        }
        Ok(Self { root: above.join(level.name()), level })
    }

    /// The node in the folder `root`.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root, level: Level::Node }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `name` below it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// `name` below it as text, for a command line.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.join(name).display().to_string()
    }

    /// What a component wrote to its standard output and error.
    #[must_use]
    pub fn log(&self, component: &str) -> PathBuf {
        self.root.join("log").join(format!("{component}.log"))
    }

    /// The file with the process id of a component, as the cluster's own processes see it.
    #[must_use]
    pub fn pid(&self, component: &str) -> PathBuf {
        self.root.join("run").join(format!("{component}.pid"))
    }
}
