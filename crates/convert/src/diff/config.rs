//! Two configs: what they run, and how.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

/// Fields that say how an image came about and not what it is.
const HISTORY: [&str; 2] = ["rootfs", "history"];

/// Something in which two configs differ.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ConfigChange {
    /// Which field, as in `config.Env.PATH` or `architecture`.
    pub field: String,
    /// In the first image; `None` if it is not there.
    pub a: Option<Value>,
    /// In the second.
    pub b: Option<Value>,
}

/// All that differs. A field that is null, or empty, is one that is not there.
pub(super) fn compare(a: &Value, b: &Value) -> Vec<ConfigChange> {
    let (first, second) = (fields(a), fields(b));
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    names
        .into_iter()
        .filter(|name| first.get(*name) != second.get(*name))
        .map(|name| ConfigChange {
            field: name.clone(),
            a: first.get(name).cloned(),
            b: second.get(name).cloned(),
        })
        .collect()
}

fn fields(config: &Value) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::new();
    for (key, value) in config.as_object().into_iter().flatten() {
        if key == "config" {
            for (key, value) in value.as_object().into_iter().flatten() {
                nested(&mut fields, &format!("config.{key}"), value);
            }
        } else if !HISTORY.contains(&key.as_str()) {
            put(&mut fields, key.clone(), value);
        }
    }
    fields
}

/// The environment and what else is a set are compared by member.
fn nested(fields: &mut BTreeMap<String, Value>, name: &str, value: &Value) {
    match value {
        Value::Array(variables) if name == "config.Env" => {
            for variable in variables.iter().filter_map(Value::as_str) {
                let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
                // The empty value of a variable is one.
                fields.insert(format!("{name}.{key}"), Value::String(value.to_owned()));
            }
        }
        Value::Object(members) => {
            for (key, value) in members {
                fields.insert(format!("{name}.{key}"), value.clone());
            }
        }
        _ => put(fields, name.to_owned(), value),
    }
}

fn put(fields: &mut BTreeMap<String, Value>, name: String, value: &Value) {
    let is_empty = match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(set) => !set,
        Value::Number(_) => false,
    };
    if !is_empty {
        fields.insert(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(a: &Value, b: &Value) -> Vec<String> {
        compare(a, b).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_an_image_runs_is_compared_member_by_member() {
        let a = json!({"architecture": "amd64", "rootfs": {"diff_ids": [1]}, "history": [1],
            "config": {"Env": ["A=1", "B=2"], "Cmd": ["sh"], "User": "", "Labels": {"x": "1"}, "Volumes": null}});
        let b = json!({"architecture": "arm64", "rootfs": {"diff_ids": [2]},
            "config": {"Env": ["B=3", "C="], "Cmd": ["sh", "-c"], "Labels": {"x": "1", "y": ""}}});
        assert_eq!(
            shown(&a, &b),
            [
                r#"M architecture ("amd64"→"arm64")"#,
                r#"M config.Cmd (["sh"]→["sh","-c"])"#,
                r#"D config.Env.A ("1")"#,
                r#"M config.Env.B ("2"→"3")"#,
                r#"A config.Env.C ("")"#,
                r#"A config.Labels.y ("")"#,
            ]
        );
        assert!(shown(&a, &a).is_empty());
        assert!(shown(&json!({}), &json!({"config": {"User": "", "Tty": false}})).is_empty());
    }
}
