//! The processes that a cluster is made of: their command lines, in the order in which they start.

use crate::folder::Folder;
use crate::network::{API_PORT, METADATA_PORT, NODE, NODE_NAME, S3_PORT};

/// One process of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    /// What it is called, in messages and as the name of its log.
    pub(crate) name: &'static str,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// What its environment has beside ours.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// The driver's name in Kubernetes.
pub const DRIVER: &str = "csi.tradewind.test";
/// Where the driver listens, inside.
pub(crate) const DRIVER_SOCKET: &str = "/var/lib/kubelet/plugins/csi.tradewind.test/csi.sock";
/// Where the kubelet looks for drivers, inside.
pub(crate) const REGISTRATION: &str = "/var/lib/kubelet/plugins_registry";
/// The group of all pods in every hierarchy of control groups.
pub(crate) const CGROUP: &str = "/tradewind-cluster";
/// Who may use the S3 server: access key and secret key.
pub const S3_KEYS: (&str, &str) = ("tradewind", "tradewind-cluster-secret");

/// The names of all components of a node.
pub const COMPONENTS: [&str; 12] = [
    "etcd",
    "apiserver",
    "containerd",
    "s3",
    "controller-manager",
    "scheduler",
    "kubelet",
    "csi-driver",
    "csi-provisioner",
    "csi-snapshotter",
    "snapshot-controller",
    "snapshot-metadata",
];

fn component(name: &'static str, program: &str, arguments: Vec<String>) -> Component {
    let command = std::iter::once(program.to_owned()).chain(arguments).collect();
    Component { name, command, environment: Vec::new() }
}

/// Arguments of a literal list, in which `{pki}` and the like are expanded.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { vec![$(format!($argument)),*] };
}

/// The database. Nothing is flushed: what it holds is gone with the cluster.
pub(crate) fn etcd(folder: &Folder) -> Component {
    let data = folder.text("etcd");
    component(
        "etcd",
        "etcd",
        arguments![
            "--data-dir={data}",
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:0"
        ],
    )
}

/// The API server.
pub(crate) fn apiserver(folder: &Folder) -> Component {
    let pki = folder.text("pki");
    component(
        "apiserver",
        "kube-apiserver",
        arguments![
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            "--secure-port={API_PORT}",
            "--advertise-address={NODE}",
            "--tls-cert-file={pki}/apiserver.crt",
            "--tls-private-key-file={pki}/apiserver.key",
            "--client-ca-file={pki}/ca.crt",
            "--requestheader-client-ca-file={pki}/ca.crt",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--kubelet-client-certificate={pki}/kubelet-client.crt",
            "--kubelet-client-key={pki}/kubelet-client.key",
            "--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file={pki}/sa.pub",
            "--service-account-signing-key-file={pki}/sa.key",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
            // It stops at once where it would otherwise wait a minute for its clients.
            "--shutdown-delay-duration=0s",
            "--shutdown-watch-termination-grace-period=0s"
        ],
    )
}

/// What turns objects into other objects.
pub(crate) fn controller_manager(folder: &Folder) -> Component {
    let pki = folder.text("pki");
    let config = format!("{pki}/controller-manager.kubeconfig");
    component(
        "controller-manager",
        "kube-controller-manager",
        arguments![
            "--kubeconfig={config}",
            "--authentication-kubeconfig={config}",
            "--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--use-service-account-credentials",
            "--service-account-private-key-file={pki}/sa.key",
            "--root-ca-file={pki}/ca.crt",
            "--cluster-signing-cert-file={pki}/ca.crt",
            "--cluster-signing-key-file={pki}/ca.key"
        ],
    )
}

/// What places pods.
pub(crate) fn scheduler(folder: &Folder) -> Component {
    let config = folder.text("pki/scheduler.kubeconfig");
    component(
        "scheduler",
        "kube-scheduler",
        arguments![
            "--kubeconfig={config}",
            "--authentication-kubeconfig={config}",
            "--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false"
        ],
    )
}

/// What runs containers.
pub(crate) fn containerd(folder: &Folder) -> Component {
    component("containerd", "containerd", vec!["--config".to_owned(), folder.text("containerd.toml")])
}

/// The node.
pub(crate) fn kubelet(folder: &Folder) -> Component {
    let (config, kubeconfig) = (folder.text("kubelet.yaml"), folder.text("pki/kubelet.kubeconfig"));
    component(
        "kubelet",
        "kubelet",
        arguments![
            "--config={config}",
            "--kubeconfig={kubeconfig}",
            "--root-dir=/var/lib/kubelet",
            "--hostname-override={NODE_NAME}",
            "--node-ip={NODE}"
        ],
    )
}

/// The S3 server: a folder is a bucket, a file an object.
pub(crate) fn s3(folder: &Folder) -> Component {
    let data = folder.text("s3");
    let mut component = component(
        "s3",
        "versitygw",
        arguments!["--port={NODE}:{S3_PORT}", "--region=us-east-1", "posix", "{data}"],
    );
    component.environment =
        vec![("ROOT_ACCESS_KEY", S3_KEYS.0.to_owned()), ("ROOT_SECRET_KEY", S3_KEYS.1.to_owned())];
    component
}

/// The storage driver of the tests, and what Kubernetes has for every driver: provisioner, snapshotter, the controller
/// of snapshots, and the sidecar that serves changed blocks.
pub(crate) fn storage(folder: &Folder) -> Vec<Component> {
    let (data, faults, pki) = (folder.text("volumes/driver"), folder.text("faults.json"), folder.text("pki"));
    let config = format!("{pki}/admin.kubeconfig");
    vec![
        component(
            "csi-driver",
            "csi-driver",
            arguments![
                "--name={DRIVER}",
                "--node={NODE_NAME}",
                "--endpoint={DRIVER_SOCKET}",
                "--registration={REGISTRATION}",
                "--state={data}",
                "--faults={faults}",
                "--block-length=fixed:4096"
            ],
        ),
        component(
            "csi-provisioner",
            "csi-provisioner",
            arguments![
                "--kubeconfig={config}",
                "--csi-address={DRIVER_SOCKET}",
                "--leader-election=false",
                "--feature-gates=Topology=true",
                "--extra-create-metadata"
            ],
        ),
        component(
            "csi-snapshotter",
            "csi-snapshotter",
            arguments![
                "--kubeconfig={config}",
                "--csi-address={DRIVER_SOCKET}",
                "--leader-election=false",
                "--extra-create-metadata"
            ],
        ),
        component(
            "snapshot-controller",
            "snapshot-controller",
            arguments!["--kubeconfig={config}", "--leader-election=false"],
        ),
        component(
            "snapshot-metadata",
            "csi-snapshot-metadata",
            arguments![
                "--kubeconfig={config}",
                "--csi-address={DRIVER_SOCKET}",
                "--port={METADATA_PORT}",
                "--tls-cert={pki}/snapshot-metadata.crt",
                "--tls-key={pki}/snapshot-metadata.key"
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Level;

    #[test]
    fn every_component_is_in_the_list() {
        let folder = Folder::of(Level::Node).unwrap();
        let one = [etcd, apiserver, containerd, s3, controller_manager, scheduler, kubelet];
        let all = one.iter().map(|component| component(&folder)).chain(storage(&folder));
        assert_eq!(all.map(|component| component.name).collect::<Vec<_>>(), COMPONENTS);
    }
}
