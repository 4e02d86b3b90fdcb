//! IAM's policy documents.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

/// A policy of these statements.
pub(super) fn policy(statements: &[Value]) -> Value {
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// Whether a document that AWS has says the same as the one it was given.
/// `there` may be percent-encoded, as IAM has them.
pub(super) fn says_the_same(there: &str, wanted: &Value) -> bool {
    let decoded = percent_decode_str(there).decode_utf8_lossy();
    serde_json::from_str(&decoded).is_ok_and(|there| normal(&there) == normal(wanted))
}

/// The one form of all documents that say the same: a list of one is that one,
/// and lists, which are sets, are sorted; so are members, and the keys of
/// conditions have no case.
pub(super) fn normal(value: &Value) -> Value {
    normal_in(value, false)
}

fn normal_in(value: &Value, in_condition: bool) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<_> = items.iter().map(|item| normal_in(item, false)).collect();
            items.sort_by_cached_key(Value::to_string);
            items.dedup();
            match <[Value; 1]>::try_from(items) {
                Ok([only]) => only,
                Err(items) => items.into(),
            }
        }
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| {
                if name == "Condition"
                    && let Value::Object(operators) = value
                {
                    let operator =
                        |(name, value): (&String, &Value)| (name.clone(), normal_in(value, true));
                    let operators: Map<_, _> = operators.iter().map(operator).collect();
                    return (name.clone(), operators.into());
                }
                let name = if in_condition {
                    name.to_ascii_lowercase()
                } else {
                    name.clone()
                };
                (name, normal_in(value, false))
            };
            let members: Map<_, _> = members.iter().map(member).collect();
            members.into()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Value {
        policy(&[
            json!({ "Effect": "Allow", "Action": ["b:B", "a:A"], "Resource": "r" }),
            json!({
                "Effect": "Allow", "Action": "c:C", "Resource": ["s", "t"],
                "Condition": { "StringEquals": { "aws:SourceAccount": "1" } },
            }),
        ])
    }

    #[test]
    fn order_and_single_elements_say_nothing() {
        let there = r#"{"Statement":[
            {"Resource":["t","s"],"Effect":"Allow","Action":["c:C"],
             "Condition":{"StringEquals":{"AWS:SourceAccount":["1"]}}},
            {"Action":["a:A","b:B"],"Resource":["r"],"Effect":"Allow"}],
            "Version":"2012-10-17"}"#;
        assert!(says_the_same(there, &wanted()));
        let one = policy(&[json!({ "Effect": "Allow", "Action": "a:A", "Resource": "r" })]);
        let there = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"a:A","Resource":"r"}}"#;
        assert!(says_the_same(there, &one));
    }

    #[test]
    fn iam_has_them_encoded() {
        let encoded: String = wanted()
            .to_string()
            .bytes()
            .map(|b| format!("%{b:02X}"))
            .collect();
        assert!(says_the_same(&encoded, &wanted()));
    }

    #[test]
    fn everything_else_says_something() {
        let said = wanted().to_string();
        for (from, to) in [
            ("Allow", "Deny"),
            ("a:A", "a:*"),
            ("\"r\"", "\"*\""),
            ("StringEquals", "StringLike"),
            ("aws:SourceAccount", "aws:SourceArn"),
            (":\"1\"", ":\"2\""),
            ("2012-10-17", "2008-10-17"),
            ("\"s\",", ""),
        ] {
            let changed = said.replace(from, to);
            assert_ne!(changed, said, "{from}");
            assert!(!says_the_same(&changed, &wanted()), "{changed}");
        }
        for there in ["", "{}", "null", "%7B"] {
            assert!(!says_the_same(there, &wanted()), "{there}");
        }
    }
}
