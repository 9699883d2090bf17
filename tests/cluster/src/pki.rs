//! Certificates and kubeconfigs of one cluster, made anew at each start: a CA of its own, and nothing that is worth
//! anything outside of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use crate::folder::Folder;
use crate::network::{API_SERVICE, NODE, NODE_NAME};

/// A certificate to make: file name, organization, common name, and the names it is valid for where it is a server's.
struct Subject<'a> {
    file: &'a str,
    organization: Option<&'a str>,
    name: &'a str,
    serves: &'a [&'a str],
}

/// Makes all of `folder`/pki: `ca`, `apiserver`, `kubelet-server`, `snapshot-metadata`, the clients' certificates with
/// a kubeconfig each, and the key pair that signs service accounts' tokens.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn make(folder: &Folder) -> Result<()> {
    let dir = folder.join("pki");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;

    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name = subject(None, "tradewind-cluster-ca");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    write(&dir, "ca.crt", &ca.self_signed(&ca_key)?.pem())?;
    write(&dir, "ca.key", &ca_key.serialize_pem())?;
    let ca = Issuer::new(ca, ca_key);

    let servers = [
        Subject {
            file: "apiserver",
            organization: None,
            name: "kube-apiserver",
            serves: &[
                "127.0.0.1",
                API_SERVICE,
                NODE,
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
            ],
        },
        Subject { file: "kubelet-server", organization: None, name: NODE_NAME, serves: &[NODE, NODE_NAME] },
        // There is no DNS: the sidecar is reached by its address.
        Subject { file: "snapshot-metadata", organization: None, name: "snapshot-metadata", serves: &[NODE] },
    ];
    let clients = [
        ("admin", Some("system:masters"), "admin"),
        ("kubelet-client", Some("system:masters"), "apiserver-kubelet-client"),
        ("controller-manager", None, "system:kube-controller-manager"),
        ("scheduler", None, "system:kube-scheduler"),
        ("kubelet", Some("system:nodes"), "system:node:node1"),
    ];
    let clients = clients.map(|(file, organization, name)| Subject { file, organization, name, serves: &[] });
    for subject in servers.iter().chain(&clients) {
        certificate(&dir, subject, &ca)?;
    }
    for client in &clients {
        write(&dir, &format!("{}.kubeconfig", client.file), &kubeconfig(&dir, client.file))?;
    }
    let tokens = KeyPair::generate()?;
    write(&dir, "sa.key", &tokens.serialize_pem())?;
    write(&dir, "sa.pub", &tokens.public_key_pem())
}

fn subject(organization: Option<&str>, name: &str) -> DistinguishedName {
    let mut whole = DistinguishedName::new();
    if let Some(organization) = organization {
        whole.push(DnType::OrganizationName, organization);
    }
    whole.push(DnType::CommonName, name);
    whole
}

fn certificate(dir: &Path, of: &Subject<'_>, ca: &Issuer<'_, KeyPair>) -> Result<()> {
    let names: Vec<String> = of.serves.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate()?;
    let mut wanted = CertificateParams::new(names)?;
    wanted.distinguished_name = subject(of.organization, of.name);
    wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    wanted.extended_key_usages = vec![if of.serves.is_empty() {
        ExtendedKeyUsagePurpose::ClientAuth
    } else {
        ExtendedKeyUsagePurpose::ServerAuth
    }];
    write(dir, &format!("{}.crt", of.file), &wanted.signed_by(&key, ca)?.pem())?;
    write(dir, &format!("{}.key", of.file), &key.serialize_pem())
}

/// A kubeconfig as JSON, which is YAML.
fn kubeconfig(dir: &Path, client: &str) -> String {
    let file = |name: &str| dir.join(name).display().to_string();
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": {
            "server": "https://127.0.0.1:6443",
            "certificate-authority": file("ca.crt"),
        }}],
        "users": [{"name": client, "user": {
            "client-certificate": file(&format!("{client}.crt")),
            "client-key": file(&format!("{client}.key")),
        }}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": client}}],
        "current-context": "tests",
    })
    .to_string()
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let file = dir.join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}
