//! Changing objects.

use serde::Serialize;
use serde_json::{Map, Value};

/// The merge patch (RFC 7396) that makes `before` into `after`: what has changed, `null` for what has gone, and the version
/// that was read, so that the API server refuses it (409) when somebody was faster.
///
/// An object itself is no patch: what is at its default is not written, so nothing could be set back to it. And where the
/// whole object is put in the place of another, defaults that somebody wrote out are gone.
///
/// # Errors
/// When an object cannot be written as JSON.
pub fn patch(before: &impl Serialize, after: &impl Serialize) -> Result<Value, serde_json::Error> {
    let (before, after) = (serde_json::to_value(before)?, serde_json::to_value(after)?);
    let mut patch = difference(&before, &after).unwrap_or_else(|| Value::Object(Map::new()));
    if let Some(version) = before["metadata"].get("resourceVersion") {
        patch["metadata"]["resourceVersion"] = version.clone();
    }
    Ok(patch)
}

/// What makes one value into another, if they differ.
fn difference(before: &Value, after: &Value) -> Option<Value> {
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else {
        return (before != after).then(|| after.clone());
    };
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), Value::Null));
    let changed = new.iter().filter_map(|(name, value)| {
        let difference = match old.get(name) {
            Some(before) => difference(before, value)?,
            None => value.clone(),
        };
        Some((name.clone(), difference))
    });
    let all: Map<String, Value> = gone.chain(changed).collect();
    (!all.is_empty()).then_some(Value::Object(all))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::velero::{DataUpload, MovePhase};

    #[test]
    fn only_what_changed_and_what_has_gone() {
        let before = json!({
            "metadata": {"name": "a", "resourceVersion": "7", "labels": {"x": "1", "y": "2"}},
            "spec": {"list": [1, 2], "same": true, "paused": false},
        });
        let mut after = before.clone();
        after["metadata"]["labels"] = json!({"x": "1"});
        after["spec"]["list"] = json!([1]);
        after["status"] = json!({"phase": "Accepted"});
        let expected = json!({
            "metadata": {"resourceVersion": "7", "labels": {"y": null}},
            "spec": {"list": [1]},
            "status": {"phase": "Accepted"},
        });
        assert_eq!(patch(&before, &after).unwrap(), expected);
        assert_eq!(patch(&before, &before).unwrap(), json!({"metadata": {"resourceVersion": "7"}}));
    }

    #[test]
    fn a_field_can_be_set_back() {
        let text = json!({
            "apiVersion": "velero.io/v2alpha1", "kind": "DataUpload",
            "metadata": {"name": "a", "resourceVersion": "1"},
            "spec": {"snapshotType": "CSI", "sourcePVC": "p", "sourceNamespace": "n", "backupStorageLocation": "b",
                "operationTimeout": "10m0s", "cancel": false},
            "status": {"phase": "Accepted", "acceptedByNode": "one", "message": "wait"},
        });
        let before: DataUpload = serde_json::from_value(text).unwrap();
        let mut after = before.clone();
        let status = after.status.get_or_insert_default();
        status.phase = MovePhase::New;
        status.accepted_by_node.clear();
        let expected = json!({
            "metadata": {"resourceVersion": "1"},
            "status": {"phase": null, "acceptedByNode": null},
        });
        // `cancel: false` was written by somebody, and stays.
        assert_eq!(patch(&before, &after).unwrap(), expected);
    }
}
