//! Registration at the kubelet, which watches a folder for sockets and asks each of them who it is.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::proto::registration::registration_server::Registration;
use crate::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// Answers the kubelet.
#[derive(Debug)]
pub(crate) struct Registrar {
    /// The driver's name.
    pub(crate) name: String,
    /// Where it serves CSI.
    pub(crate) endpoint: PathBuf,
    /// Gets what the kubelet says when it refuses the driver.
    pub(crate) refused: mpsc::Sender<String>,
}

/// Where the kubelet looks for the driver of this name.
///
/// The kubelet (1.36, `operation_generator.go`) calls this socket with its escaped path as HTTP's `:authority`, which
/// `h2` takes only where the escapes stand before an `@`, as a user's name (hyperium/h2#487). CSI's own socket it calls
/// as `localhost`.
pub(crate) fn socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("reg@{name}.sock"))
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        let endpoint = self.endpoint.to_string_lossy().into_owned();
        eprintln!("csi-driver: the kubelet asks who is there");
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.name.clone(),
            endpoint,
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            eprintln!("csi-driver: registered at the kubelet");
        } else {
            // Nobody receives it when the driver is ending anyway.
            let _ = self.refused.send(status.error).await;
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
