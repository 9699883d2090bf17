//! The Identity service: who the driver is and what it can do.

use tonic::{Request, Response, Status};

use crate::driver::Services;
use crate::faults::Call;
use crate::proto::csi::identity_server::Identity;
use crate::proto::csi::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use crate::proto::csi::{
    BoolValue, GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};

#[tonic::async_trait]
impl Identity for Services {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        self.run(Call::GetPluginInfo, &[], |driver| {
            let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
            Ok(GetPluginInfoResponse { name: driver.name.clone(), vendor_version })
        })
        .await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        self.run(Call::GetPluginCapabilities, &[], |_| {
            let services = [
                service::Type::ControllerService,
                service::Type::VolumeAccessibilityConstraints,
                service::Type::SnapshotMetadataService,
            ];
            let services = services.map(|kind| Type::Service(Service { r#type: kind.into() }));
            let online = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
            let all = services.into_iter().chain([Type::VolumeExpansion(online)]);
            let capabilities = all.map(|kind| PluginCapability { r#type: Some(kind) }).collect();
            Ok(GetPluginCapabilitiesResponse { capabilities })
        })
        .await
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        self.run(Call::Probe, &[], |_| Ok(ProbeResponse { ready: Some(BoolValue { value: true }) })).await
    }
}
