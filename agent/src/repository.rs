//! The repository of a namespace in a storage location: where it is, who may go there, and its key.
//!
//! The key is a Secret of the installation: one that the user brought, or random bytes, made while the first repository
//! of all locations is. It is never made where a location has one: that one's key would be lost behind it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, SecretKeySelector};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use tradewind_k8s::bucket::{self, Bucket};
use tradewind_k8s::velero::{BackupStorageLocation, BackupStorageLocationSpec};
use tradewind_pipeline::limits::Limits;
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::repository::{InitOptions, Repository};
use tradewind_pipeline::seal;
use tradewind_pipeline::store::rate::Rate as PacedStore;
use tradewind_pipeline::store::read_only::ReadOnly;
use tradewind_pipeline::store::retry::{Policy, Retry};
use tradewind_pipeline::store::{Store, s3, url};
use zeroize::Zeroizing;

use crate::key::EXPORTED;
use crate::objects;

/// The key of the key's Secret.
const KEY: &str = "key";
/// Below this prefix of a location are the repositories, each under its namespace's name ([`Bucket::repository`]).
pub(crate) const REPOSITORIES: &str = "plugins/tradewind/";
/// Bytes of a key that is made here.
const KEY_BYTES: usize = 64;
/// The key of the Secret with credentials where a location names none, as Velero's own installation has it.
const CREDENTIALS: &str = "cloud";

/// Why a repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The cluster was asked in vain.
    #[error("{0}: {1}")]
    Cluster(String, kube::Error),
    /// The location, or its Secrets: what is wrong with them.
    #[error("{0}")]
    Location(String),
    /// The bucket, or the repository in it.
    #[error(transparent)]
    Pipeline(#[from] tradewind_pipeline::Error),
    /// A file of this agent.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
}

/// Where to look for what opens repositories.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) client: Client,
    /// The namespace of Velero and of this agent.
    pub(crate) namespace: String,
    /// The Secret with credentials for locations that name none; the pod's own identity where there is none.
    pub(crate) credentials: Option<String>,
    /// The Secret with the key.
    pub(crate) key: String,
    /// Folder in memory for files that hold secrets.
    pub(crate) private: PathBuf,
}

/// A store, and the files that it needs as long as it is used.
struct Opened {
    store: Arc<dyn Store>,
    read_only: bool,
}

impl Keys {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Opens the repository of `namespace` in `location`; makes it where there is none and `make` says so.
    ///
    /// # Errors
    /// When the location is not there or not understood, its bucket cannot be reached, there is no repository, or the key
    /// is missing or wrong.
    pub(crate) async fn open(
        &self,
        location: &str,
        namespace: &str,
        make: bool,
        limits: &Limits,
        progress: &Arc<Progress>,
    ) -> Result<Arc<Repository>, Error> {
        let Opened { store, read_only } = self.store(location, Some(namespace), limits, progress).await?;
        if make && read_only {
            return Err(Error::Location(format!(
                "storage location {location} is read-only: nothing can be backed up to it"
            )));
        }
        let exists = is_there(&store).await?;
        let key = match (self.key().await?, exists || !make) {
            (Some(key), _) => key,
            (None, true) => return Err(self.missing(&store)),
            (None, false) => self.make_key(location, limits, progress).await?,
        };
        let secret = seal::Secret::key_file(key)?;
        if exists || !make {
            let (repository, report) = Box::pin(Repository::open(store, &secret)).await?;
            for bad in report.bad_slots {
                tracing::warn!("{}: {}", bad.key, bad.what);
            }
            return Ok(Arc::new(repository));
        }
        let options = InitOptions { label: "cluster".to_owned(), ..InitOptions::default() };
        match Box::pin(Repository::init(Arc::clone(&store), &secret, options)).await {
            Ok(repository) => Ok(Arc::new(repository)),
            // Another agent was faster.
            Err(_) if is_there(&store).await? => {
                Ok(Arc::new(Box::pin(Repository::open(store, &secret)).await?.0))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn missing(&self, store: &Arc<dyn Store>) -> Error {
        Error::Location(format!(
            "the key of {} is missing: put it into Secret {}/{}, as '{KEY}'",
            store.location(),
            self.namespace,
            self.key
        ))
    }

    /// The key, if its Secret is there.
    async fn key(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let place = format!("Secret {}/{}", self.namespace, self.key);
        if self.secrets().get_metadata_opt(&self.key).await.map_err(|e| Error::Cluster(place, e))?.is_none() {
            return Ok(None);
        }
        let selector = SecretKeySelector { name: self.key.clone(), key: KEY.to_owned(), optional: None };
        self.secret(&selector).await.map(Some)
    }

    /// Makes a key, unless there are repositories already, in whatever location and of whatever namespace.
    async fn make_key(
        &self,
        location: &str,
        limits: &Limits,
        progress: &Arc<Progress>,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let all = self.root(location, limits, progress).await?;
        // There is one key for all locations: one that cannot be reached may have repositories whose key is lost.
        let locations: Api<BackupStorageLocation> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = locations.list(&ListParams::default()).await;
        for other in found.map_err(|e| Error::Cluster("listing storage locations".to_owned(), e))? {
            let store = match self.root(&other.name_any(), limits, progress).await {
                Ok(store) => store,
                // Of another provider, or with settings that are not understood: nothing of ours is there.
                Err(Error::Location(why)) => {
                    tracing::info!("not looked at before a key is made: {why}");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let listing = store.list(REPOSITORIES, None).await.map_err(tradewind_pipeline::Error::from)?;
            if !listing.objects.is_empty() {
                return Err(self.missing(&store));
            }
        }
        let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
        getrandom::fill(&mut key).map_err(|e| Error::Location(format!("no random bytes: {e}")))?;
        let mut secret = Secret {
            data: Some([(KEY.to_owned(), ByteString(key.to_vec()))].into()),
            immutable: Some(false),
            ..Secret::default()
        };
        secret.metadata.name = Some(self.key.clone());
        secret.metadata.annotations = Some([(EXPORTED.to_owned(), "false".to_owned())].into());
        let place = format!("making Secret {}/{}", self.namespace, self.key);
        objects::create(&self.secrets(), &secret).await.map_err(|e| Error::Cluster(place, e))?;
        // What counts is what is there now: another agent may have been faster.
        self.key().await?.ok_or_else(|| self.missing(&all))
    }

    /// The store with all that is in a location, Velero's objects too.
    pub(crate) async fn root(
        &self,
        location: &str,
        limits: &Limits,
        progress: &Arc<Progress>,
    ) -> Result<Arc<dyn Store>, Error> {
        self.store(location, None, limits, progress).await.map(|opened| opened.store)
    }

    /// The store of a namespace's repository, or of the whole location.
    async fn store(
        &self,
        location: &str,
        namespace: Option<&str>,
        limits: &Limits,
        progress: &Arc<Progress>,
    ) -> Result<Opened, Error> {
        let locations: Api<BackupStorageLocation> = Api::namespaced(self.client.clone(), &self.namespace);
        let place = || format!("storage location {location}");
        let found = locations.get_opt(location).await.map_err(|e| Error::Cluster(place(), e))?;
        let found = found.ok_or_else(|| Error::Location(format!("there is no {}", place())))?;
        let refused = |what: String| Error::Location(format!("{}: {what}", place()));
        let bucket = Bucket::of(&found.spec).map_err(|mistakes| refused(mistakes.to_string()))?;
        let options = self.options(&found.spec, &bucket).await?;
        let below = namespace.map_or_else(|| bucket.prefix.clone(), |namespace| bucket.repository(namespace));
        let address = format!("s3://{}/{below}", bucket.name);
        let plain = url::open(&address, &options).await.map_err(|e| refused(e.to_string()))?;
        let paced = PacedStore::new(plain, limits.upload_rate.clone(), Arc::clone(progress));
        let mut store: Arc<dyn Store> =
            Arc::new(Retry::new(Arc::new(paced), Policy::default(), Arc::clone(progress)));
        if bucket.read_only {
            store = Arc::new(ReadOnly::new(store));
        }
        Ok(Opened { store, read_only: bucket.read_only })
    }

    /// What a location says of how its bucket is reached.
    async fn options(
        &self,
        spec: &BackupStorageLocationSpec,
        bucket: &Bucket,
    ) -> Result<url::Options, Error> {
        if bucket.credentials_file.is_some() {
            return Err(Error::Location(
                "config.credentialsFile names a file that only Velero has: name a Secret as spec.credential"
                    .to_owned(),
            ));
        }
        let installation = self.credentials.clone().map(|name| SecretKeySelector {
            name,
            key: CREDENTIALS.to_owned(),
            ..SecretKeySelector::default()
        });
        let credentials_file = match spec.credential.clone().or(installation) {
            Some(selector) => Some(self.file(&selector, "credentials").await?),
            None => None,
        };
        let ca_file = match (&spec.object_storage.ca_cert, &spec.object_storage.ca_cert_ref) {
            (Some(pem), _) => Some(self.private_file("ca", &pem.0)?),
            (None, Some(selector)) => Some(self.file(selector, "ca").await?),
            (None, None) => None,
        };
        let encryption = match &bucket.encryption {
            bucket::Encryption::Unset => s3::Encryption::Unset,
            bucket::Encryption::Own(kind) => s3::Encryption::named(Some(kind), None)?,
            bucket::Encryption::Kms { key, kind } => {
                s3::Encryption::named(kind.as_deref(), Some(key.clone()))?
            }
            bucket::Encryption::CustomerSecret { secret, key } => {
                let selector = SecretKeySelector { name: secret.clone(), key: key.clone(), optional: None };
                s3::Encryption::Customer(s3::CustomerKey::new(&self.secret(&selector).await?)?)
            }
            bucket::Encryption::CustomerFile(_) => {
                return Err(Error::Location(
                    "config.customerKeyEncryptionFile names a file that only Velero has: use customerKeyEncryptionSecret"
                        .to_owned(),
                ));
            }
        };
        Ok(url::Options {
            endpoint: bucket.endpoint.clone(),
            region: bucket.region.clone(),
            path_style: bucket.path_style,
            ca_file,
            insecure_skip_tls_verify: bucket.insecure_skip_tls_verify,
            credentials_file,
            shared_config: bucket.shared_config,
            profile: bucket.profile.clone(),
            encryption,
            tagging: bucket.tagging.clone(),
        })
    }

    /// What a Secret says.
    async fn secret(&self, selector: &SecretKeySelector) -> Result<Zeroizing<Vec<u8>>, Error> {
        let place = || format!("Secret {}/{}", self.namespace, selector.name);
        let secret = self.secrets().get_opt(&selector.name).await.map_err(|e| Error::Cluster(place(), e))?;
        let mut data = secret
            .ok_or_else(|| Error::Location(format!("there is no {}", place())))?
            .data
            .unwrap_or_default();
        let text = data.remove(&selector.key);
        let text = text.ok_or_else(|| Error::Location(format!("{} has no '{}'", place(), selector.key)))?;
        Ok(Zeroizing::new(text.0))
    }

    /// What a Secret says, as a file that nobody else can read.
    async fn file(&self, selector: &SecretKeySelector, what: &str) -> Result<PathBuf, Error> {
        self.private_file(what, &self.secret(selector).await?)
    }

    /// A file with this content, named by it: written once, and never changed while a store may read it.
    fn private_file(&self, what: &str, content: &[u8]) -> Result<PathBuf, Error> {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
        let path = self.private.join(format!("{what}-{}", hex::encode(&hash.as_ref()[..8])));
        let failed = |e| Error::File(path.clone(), e);
        if path.exists() {
            return Ok(path);
        }
        // Mode 0600, and never seen in part.
        let mut file = tempfile::NamedTempFile::new_in(&self.private).map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(path)
    }
}

/// True when there is a repository.
async fn is_there(store: &Arc<dyn Store>) -> Result<bool, Error> {
    match store.stat("config").await {
        Ok(_) => Ok(true),
        Err(error) if error.kind == tradewind_pipeline::store::StoreErrorKind::NotFound => Ok(false),
        Err(error) => Err(tradewind_pipeline::Error::from(error).into()),
    }
}

/// A folder that only this process reads (mode 0700), for files that hold secrets: in memory, where that can be had.
pub(crate) fn private_folder() -> std::io::Result<tempfile::TempDir> {
    let folder = |below: &Path| tempfile::Builder::new().prefix("tradewind-").tempdir_in(below);
    folder(Path::new("/dev/shm")).or_else(|_| folder(&std::env::temp_dir()))
}
