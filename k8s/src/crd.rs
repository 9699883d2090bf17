//! Definitions of the custom resources, made from the types.
//!
//! They mean what those of Velero 1.18.3 mean: the same names, schemas and columns, and no status subresource. A chart
//! gives them to a cluster that has none, and leaves those that a cluster has as they are.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Map, Value, json};

use crate::velero;

/// The definitions of all kinds, in the order of their names.
///
/// # Panics
/// Never: the schemas are made of constants, and a test makes all of them.
#[must_use]
#[expect(clippy::expect_used, reason = "made of constants")]
pub fn all() -> Vec<CustomResourceDefinition> {
    let derived = [
        velero::Backup::crd(),
        velero::BackupRepository::crd(),
        velero::BackupStorageLocation::crd(),
        velero::DataDownload::crd(),
        velero::DataUpload::crd(),
        velero::DeleteBackupRequest::crd(),
        velero::DownloadRequest::crd(),
        velero::PodVolumeBackup::crd(),
        velero::PodVolumeRestore::crd(),
        velero::Restore::crd(),
        velero::Schedule::crd(),
        velero::ServerStatusRequest::crd(),
        velero::VolumeSnapshotLocation::crd(),
    ];
    let definition = |crd| {
        let mut crd = serde_json::to_value(crd).expect("a definition is JSON");
        for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten() {
            // The status is written with the object, by every client that there is.
            version["subresources"] = Value::Null;
            let schema = &mut version["schema"]["openAPIV3Schema"];
            schema["required"] = Value::Null;
            schema["title"] = Value::Null;
            schema["properties"]["apiVersion"] = json!({"type": "string"});
            schema["properties"]["kind"] = json!({"type": "string"});
            schema["properties"]["metadata"] = json!({"type": "object"});
            schema["properties"]["status"]["nullable"] = Value::Null;
            as_controllers_have_it("", schema);
        }
        without_nulls(&mut crd);
        serde_json::from_value(crd).expect("it is still a definition")
    };
    derived.map(definition).into()
}

/// Counts of bytes. Every other number is Go's `int`, for which no format is written.
const BYTES: [&str; 4] = ["bytesDone", "incrementalBytes", "snapshotSize", "totalBytes"];

/// Changes the derived schema of the property `name` to what tools for Go make of the same type: no format for `int`, and
/// what Kubernetes says about the merging of its own types.
fn as_controllers_have_it(name: &str, schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("format").is_some_and(|format| format == "int64") && !BYTES.contains(&name) {
        object.remove("format");
    }
    let properties: Vec<&str> = object
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::keys)
        .map(String::as_str)
        .collect();
    let selector = properties == ["matchExpressions", "matchLabels"];
    let key = properties == ["key", "name", "optional"];
    let reference = properties == ["apiGroup", "kind", "name"] || properties.contains(&"fieldPath");
    let requirement = properties == ["key", "operator", "values"];
    if selector || key || reference {
        object.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
    }
    if selector {
        schema["properties"]["matchExpressions"]["x-kubernetes-list-type"] = json!("atomic");
    }
    if requirement {
        schema["properties"]["values"]["x-kubernetes-list-type"] = json!("atomic");
    }
    if key {
        schema["properties"]["name"]["default"] = json!("");
        schema["required"] = json!(["key"]);
    }
    for part in ["items", "additionalProperties"] {
        schema.get_mut(part).into_iter().for_each(|part| as_controllers_have_it("", part));
    }
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flatten().for_each(|(name, property)| as_controllers_have_it(name, property));
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}
