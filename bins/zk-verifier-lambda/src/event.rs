use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zk_envelope::Timestamp;
use zk_verify::Context;

use crate::Error;

/// What the rule gives for one published message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The published bytes as they came.
    pub message: Vec<u8>,
    /// What AWS IoT knows of them.
    pub context: Context,
}

/// The members of the event, each once, and no other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Members<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
    principal: String,
    topic: String,
    received_at: u64,
}

impl Event {
    /// Reads the event's JSON: `message` in base64, `principal` and `topic` of 1
    /// to 256 bytes, `receivedAt` in milliseconds since 1970.
    ///
    /// # Errors
    /// [`Error::Event`], which has no part of the event in it.
    pub fn parse(json: &str) -> Result<Self, Error> {
        let wrong = |detail: &str| Error::Event {
            detail: detail.to_owned(),
        };
        if json.len() > MAX_EVENT {
            return Err(wrong("it is larger than 1 MiB"));
        }
        // a list would be taken for the members in their order
        if !json.trim_start().starts_with('{') {
            return Err(wrong("it is no object"));
        }
        let members: Members<'_> = serde_json::from_str(json).map_err(|error| Error::Event {
            // serde's words for it can quote the event
            detail: format!(
                "its members are not message, principal, topic and receivedAt, as seen at line {}, column {}",
                error.line(),
                error.column()
            ),
        })?;
        for (name, value) in [("principal", &members.principal), ("topic", &members.topic)] {
            if !(1..=256).contains(&value.len()) {
                return Err(wrong(&format!("{name} has not 1 to 256 bytes")));
            }
        }
        let message = STANDARD
            .decode(&*members.message)
            .map_err(|_| wrong("message is not base64"))?;
        let received_at = Timestamp::from_millis(members.received_at)
            .ok_or_else(|| wrong("receivedAt is past the year 9999"))?;
        Ok(Self {
            message,
            context: Context {
                principal: members.principal,
                topic: members.topic,
                received_at,
            },
        })
    }
}

/// What Lambda takes for an asynchronous invocation, at most.
const MAX_EVENT: usize = 1 << 20;
