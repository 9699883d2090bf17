//! Our definitions of the custom resources mean what Velero's own mean.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use serde_json::{Value, json};
use tradewind_k8s::crd;

/// The folder with Velero's definitions: `VELERO_CRDS`, or beside the program `velero` of the cluster's tests.
fn folder() -> Option<PathBuf> {
    if let Some(folder) = env::var_os("VELERO_CRDS") {
        return Some(folder.into());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|programs| programs.join("velero-crds")).find(|folder| folder.is_dir())
}

/// A definition without what means nothing: texts for people, who made it, the order of words and of what is required.
fn meaning(mut definition: Value) -> Value {
    let mut spec = definition["spec"].take();
    let names = spec["names"].as_object_mut().unwrap();
    names.retain(|_, value| *value != json!([]));
    let plain = names["kind"].as_str().unwrap().to_lowercase();
    names.entry("singular").or_insert(json!(plain));
    let list = format!("{}List", names["kind"].as_str().unwrap());
    names.entry("listKind").or_insert(json!(list));
    for version in spec["versions"].as_array_mut().unwrap() {
        version.as_object_mut().unwrap().retain(|_, value| *value != json!({}) && *value != json!([]));
    }
    plainly(&mut spec, true);
    json!({"name": definition["metadata"]["name"], "spec": spec})
}

/// `words`: whether keys of this object are those of a schema, not names of properties.
fn plainly(value: &mut Value, words: bool) {
    match value {
        Value::Object(object) => {
            if words {
                object.remove("description");
                for key in ["required", "enum"] {
                    if let Some(list) = object.get_mut(key).and_then(Value::as_array_mut) {
                        list.sort_by_key(Value::to_string);
                    }
                }
            }
            for (key, value) in object {
                plainly(value, !(words && key == "properties"));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| plainly(item, words)),
        _ => {}
    }
}

/// Where two values differ, by paths.
fn differences(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                differences(&format!("{path}/{key}"), a, b, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}/{n}"), a, b, found);
            }
        }
        (a, b) if a != b => found.push(format!("{path}: ours {a}, theirs {b}")),
        _ => {}
    }
}

#[test]
fn definitions_mean_what_veleros_mean() {
    let Some(folder) = folder() else {
        // Past the capture of a passing test's output.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no VELERO_CRDS: make cluster-test brings them");
        return;
    };
    let mut theirs: BTreeMap<String, Value> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| serde_saphyr::from_str(&fs::read_to_string(file.unwrap().path()).unwrap()).unwrap())
        .map(|definition: Value| {
            (definition["metadata"]["name"].as_str().unwrap().to_owned(), meaning(definition))
        })
        .collect();
    let mut found = Vec::new();
    for ours in crd::all() {
        let ours = meaning(serde_json::to_value(ours).unwrap());
        let name = ours["name"].as_str().unwrap();
        let theirs = theirs.remove(name).unwrap_or_else(|| panic!("Velero has no {name}"));
        differences(name, &ours, &theirs, &mut found);
    }
    assert!(theirs.is_empty(), "we have no {:?}", theirs.keys());
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}
