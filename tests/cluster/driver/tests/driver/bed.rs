//! A driver on a fresh xfs, its clients, and calls as short as the tests like them. All goes with the bed, also when a
//! test fails.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::csi;
use crate::csi::controller_client::ControllerClient;
use crate::csi::identity_client::IdentityClient;
use crate::csi::node_client::NodeClient;
use crate::csi::snapshot_metadata_client::SnapshotMetadataClient;
use crate::csi::volume_capability::access_mode::Mode;
use crate::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use crate::csi::{VolumeCapability, VolumeContentSource, volume_content_source};

/// Longest wait for anything; the machine may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// Says something that shall be read even when the test passes.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Polls until `done`, and fails after [`LIMIT`].
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a program that must succeed; returns what it wrote.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Use as a bare device.
pub(crate) fn block(mode: Mode) -> VolumeCapability {
    let access_mode = Some(AccessMode { mode: mode.into() });
    VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), access_mode }
}

/// Use by way of a file system.
pub(crate) fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
    let volume = MountVolume { fs_type: fs_type.to_owned(), mount_flags: Vec::new() };
    let access_mode = Some(AccessMode { mode: mode.into() });
    VolumeCapability { access_type: Some(AccessType::Mount(volume)), access_mode }
}

pub(crate) fn code<T>(result: &Result<T, Status>) -> Code {
    result.as_ref().err().map_or(Code::Ok, Status::code)
}

/// A running driver and where it lives.
pub(crate) struct Bed {
    /// A folder on the xfs, which everything is in.
    pub(crate) dir: PathBuf,
    loops: Child,
    driver: Option<Child>,
    flags: Vec<String>,
    channel: Option<Channel>,
}

impl Bed {
    /// None, and a line that says so, if that cannot be here.
    pub(crate) async fn new(flags: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            say("SKIPPED: the driver needs root for loop devices and mounts");
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../loops.sh");
        let mut loops = Command::new(script)
            .arg("fs:xfs:40G")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let dir = BufReader::new(loops.stdout.as_mut().unwrap()).lines().next();
        let dir = PathBuf::from(dir.expect("what loops.sh wrote to standard error says why").unwrap());
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut bed = Self { dir, loops, driver: None, flags, channel: None };
        bed.start().await;
        Some(bed)
    }

    /// A path in the bed.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// The image of a volume.
    pub(crate) fn image(&self, volume: &str) -> PathBuf {
        self.dir.join("state/volumes").join(format!("{volume}.img"))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The driver's command line.
    pub(crate) fn command(&self) -> Command {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_csi-driver"));
        command.args(["--node", "here", "--endpoint", &self.path("csi.sock")]);
        command.args(["--state", &self.path("state"), "--faults", &self.path("faults.json")]);
        command.args(&self.flags).stderr(log);
        command
    }

    /// Starts the driver, and waits until it serves.
    pub(crate) async fn start(&mut self) {
        let mut driver = self.command().spawn().unwrap();
        let endpoint = Endpoint::try_from(format!("unix://{}", self.path("csi.sock"))).unwrap();
        let start = Instant::now();
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(error) => assert!(start.elapsed() < LIMIT, "no connection: {error}"),
            }
            assert!(driver.try_wait().unwrap().is_none(), "the driver ended: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        self.driver = Some(driver);
        self.channel = Some(channel);
    }

    /// Takes a driver that the test has started.
    pub(crate) fn adopt(&mut self, driver: Child) {
        self.driver = Some(driver);
    }

    /// Ends the driver without any chance to tidy up.
    pub(crate) fn kill(&mut self) {
        if let Some(mut driver) = self.driver.take() {
            driver.kill().unwrap();
            driver.wait().unwrap();
        }
    }

    /// Asks the driver to end.
    pub(crate) async fn terminate(&mut self) {
        let id = self.driver.as_ref().unwrap().id();
        run("kill", &["-TERM", &id.to_string()]);
    }

    /// How the driver ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut driver = self.driver.take().unwrap();
        let mut status = None;
        until("the driver ends", || {
            status = driver.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// Writes the file with the faults.
    pub(crate) fn faults(&self, json: &str) {
        fs::write(self.dir.join("faults.new"), json).unwrap();
        fs::rename(self.dir.join("faults.new"), self.dir.join("faults.json")).unwrap();
    }

    pub(crate) fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone().unwrap())
    }

    pub(crate) fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone().unwrap())
    }

    pub(crate) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone().unwrap())
    }

    pub(crate) fn metadata(&self) -> SnapshotMetadataClient<Channel> {
        SnapshotMetadataClient::new(self.channel.clone().unwrap())
    }

    /// Asks for a volume of this many MiB (0: as large as the source); returns its id.
    pub(crate) async fn create(&self, name: &str, mib: u64, source: Option<&str>) -> Result<String, Status> {
        let source = source.map(|id| VolumeContentSource {
            r#type: Some(if id.starts_with("snap") {
                let snapshot_id = id.to_owned();
                volume_content_source::Type::Snapshot(volume_content_source::SnapshotSource { snapshot_id })
            } else {
                let volume_id = id.to_owned();
                volume_content_source::Type::Volume(volume_content_source::VolumeSource { volume_id })
            }),
        });
        let required_bytes = i64::try_from(mib * MIB).unwrap();
        let request = csi::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes: 0 }),
            volume_capabilities: vec![block(Mode::SingleNodeWriter)],
            volume_content_source: source,
            ..Default::default()
        };
        Ok(self.controller().create_volume(request).await?.into_inner().volume.unwrap().volume_id)
    }

    /// A snapshot's id.
    pub(crate) async fn snapshot(&self, name: &str, volume: &str) -> Result<String, Status> {
        let request =
            csi::CreateSnapshotRequest { source_volume_id: volume.to_owned(), name: name.to_owned() };
        Ok(self.controller().create_snapshot(request).await?.into_inner().snapshot.unwrap().snapshot_id)
    }

    /// Stages at `staging-ID`.
    pub(crate) async fn stage(&self, volume: &str, capability: VolumeCapability) -> Result<PathBuf, Status> {
        let path = self.dir.join(format!("staging-{volume}"));
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: path.to_str().unwrap().to_owned(),
            volume_capability: Some(capability),
        };
        self.node().node_stage_volume(request).await?;
        Ok(path)
    }

    pub(crate) async fn unstage(&self, volume: &str) -> Result<(), Status> {
        let staging_target_path = self.path(&format!("staging-{volume}"));
        let request = csi::NodeUnstageVolumeRequest { volume_id: volume.to_owned(), staging_target_path };
        self.node().node_unstage_volume(request).await.map(drop)
    }

    /// Publishes at `target`.
    pub(crate) async fn publish(
        &self,
        volume: &str,
        capability: VolumeCapability,
        readonly: bool,
        target: &str,
    ) -> Result<PathBuf, Status> {
        let path = self.dir.join(target);
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: self.path(&format!("staging-{volume}")),
            target_path: path.to_str().unwrap().to_owned(),
            volume_capability: Some(capability),
            readonly,
        };
        self.node().node_publish_volume(request).await?;
        Ok(path)
    }

    pub(crate) async fn unpublish(&self, volume: &str, target: &str) -> Result<(), Status> {
        let request =
            csi::NodeUnpublishVolumeRequest { volume_id: volume.to_owned(), target_path: self.path(target) };
        self.node().node_unpublish_volume(request).await.map(drop)
    }

    /// Stages and publishes as a writer's device at `device-ID`.
    pub(crate) async fn device(&self, volume: &str) -> PathBuf {
        self.stage(volume, block(Mode::SingleNodeWriter)).await.unwrap();
        let target = format!("device-{volume}");
        self.publish(volume, block(Mode::SingleNodeWriter), false, &target).await.unwrap()
    }

    /// Stages as a writer's file system.
    pub(crate) async fn file_system(&self, volume: &str, fs_type: &str) -> PathBuf {
        self.stage(volume, mount(fs_type, Mode::SingleNodeWriter)).await.unwrap()
    }

    /// The loop devices on images of the bed, with those images.
    pub(crate) fn loops(&self) -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
        let file = |path: &Path| fs::read_to_string(path.join("loop/backing_file")).ok();
        let device = |path: &Path| format!("/dev/{}", path.file_name().unwrap().to_str().unwrap());
        entries
            .filter_map(|path| Some((device(&path), PathBuf::from(file(&path)?.trim_end()))))
            .filter(|(_, image)| image.starts_with(&self.dir))
            .collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut driver) = self.driver.take() {
            let _ = driver.kill();
            let _ = driver.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the driver's log ---\n{}---", self.log());
        }
        // What the driver mounted, last first; what a test left frozen could not be unmounted.
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
        let below: Vec<&str> =
            targets.filter(|t| Path::new(t).starts_with(&self.dir) && Path::new(t) != self.dir).collect();
        for target in below.into_iter().rev() {
            let _ = Command::new("fsfreeze").args(["--unfreeze", target]).stderr(Stdio::null()).status();
            let _ = Command::new("umount").arg(target).status();
        }
        for (device, _) in self.loops() {
            let _ = Command::new("losetup").args(["--detach", &device]).status();
        }
        drop(self.loops.stdin.take()); // it undoes the rest and ends
        let _ = self.loops.wait();
    }
}
