//! AWS keys in memory: their forms, and that nobody sees them.

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// AWS keys, in the form that `credential_process` has for them. They have no
/// `Debug`, and are wiped when they are dropped.
#[derive(Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Keys {
    version: u8,
    /// Says which key it is, and is no secret.
    pub(super) access_key_id: String,
    pub(super) secret_access_key: Secret,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) session_token: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expiration: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) account_id: Option<String>,
}

#[derive(Deserialize, Eq, PartialEq, Serialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl Keys {
    /// # Errors
    /// Which part isn't as AWS makes it; never what stands there.
    pub(super) fn new(
        access_key_id: &str,
        secret_access_key: Secret,
        session_token: Option<Secret>,
        expiration: Option<Timestamp>,
    ) -> anyhow::Result<Self> {
        let keys = Self {
            version: 1,
            access_key_id: access_key_id.to_owned(),
            secret_access_key,
            session_token,
            expiration,
            account_id: None,
        };
        keys.check()?;
        Ok(keys)
    }

    /// Reads one JSON object and nothing behind it.
    ///
    /// # Errors
    /// Where it is wrong, but not what stands there: it may be a secret.
    pub(super) fn from_json(json: &[u8]) -> anyhow::Result<Self> {
        let keys: Self = serde_json::from_slice(json).map_err(|error| {
            anyhow::anyhow!(
                "line {}, column {}: not the JSON that credential_process has for keys: \
                 {{\"Version\": 1, \"AccessKeyId\": \"…\", \"SecretAccessKey\": \"…\"}}, and \
                 perhaps SessionToken, Expiration and AccountId",
                error.line(),
                error.column()
            )
        })?;
        keys.check()?;
        Ok(keys)
    }

    pub(super) fn to_json(&self) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        // with all its room at once: growing would leave copies behind
        let mut json = Zeroizing::new(Vec::with_capacity(2 * MAX_LEN));
        serde_json::to_writer(&mut *json, self).context("the keys as JSON")?;
        Ok(json)
    }

    /// # Errors
    /// That they have expired.
    pub(super) fn in_force(&self, now: Timestamp) -> anyhow::Result<()> {
        match self.expiration {
            Some(until) if until <= now => bail!(
                "key {} expired at {until}, and it is {now}: seal the next one, or set this \
                 machine's clock",
                self.access_key_id
            ),
            _ => Ok(()),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.version == 1,
            "Version {} of keys is unknown: 1 is known",
            self.version
        );
        let id = &self.access_key_id;
        let is_id = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
        ensure!(
            (16..=128).contains(&id.len()) && id.bytes().all(is_id),
            "the access key id has 16 to 128 capital letters and digits, and this one has not; \
             it begins with AKIA or ASIA"
        );
        let is_secret = |secret: &Secret, least| {
            let text = secret.reveal();
            text.len() >= least && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        ensure!(
            is_secret(&self.secret_access_key, 16),
            "the secret access key has 16 characters of ASCII or more and no blanks, and this one \
             has not"
        );
        if let Some(token) = &self.session_token {
            ensure!(
                is_secret(token, 1),
                "the session token has blanks or characters that none has"
            );
        }
        if let Some(account) = &self.account_id {
            ensure!(
                account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit()),
                "the account id has 12 digits, and this one has not"
            );
        }
        let token = self.session_token.as_ref();
        let len = self.secret_access_key.reveal().len() + token.map_or(0, |t| t.reveal().len());
        ensure!(
            len <= MAX_LEN,
            "secret access key and session token are longer than {MAX_LEN} bytes together"
        );
        Ok(())
    }
}

/// Of the secrets: several times what AWS gives out.
pub(super) const MAX_LEN: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ID: &str = "AKIAIOSFODNN7EXAMPLE";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    #[test]
    fn what_is_wrong_is_said_without_what_stands_there() {
        let object = |members: &str| format!("{{\"Version\":1,{members}}}");
        let id = format!("\"AccessKeyId\":\"{ID}\"");
        let secret = format!("\"SecretAccessKey\":\"{SECRET}\"");
        for json in [
            String::new(),
            "[]".to_owned(),
            format!("{{\"Version\":\"{SECRET}\",{id},{secret}}}"),
            format!("{{\"Version\":2,{id},{secret}}}"),
            object(&id),
            object(&secret),
            object(&format!("{id},{secret},{secret}")),
            object(&format!("{id},{secret},\"{SECRET}\":1")),
            object(&format!("{id},{secret},\"Expiration\":\"{SECRET}\"")),
            object(&format!("{id},{secret},\"AccountId\":\"{SECRET}\"")),
            object(&format!("{id},{secret},\"SessionToken\":\"a {SECRET}\"")),
            // one in the other's place
            object(&format!(
                "\"AccessKeyId\":\"{SECRET}\",\"SecretAccessKey\":\"{ID}\""
            )),
            object(&format!("{id},\"SecretAccessKey\":\"{SECRET} \"")),
            object(&format!(
                "{id},\"SecretAccessKey\":\"{}\"",
                "x".repeat(MAX_LEN + 1)
            )),
            format!("{}x", object(&format!("{id},{secret}"))),
        ] {
            let Err(error) = Keys::from_json(json.as_bytes()) else {
                unreachable!("{json}")
            };
            assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
        }
        let json = object(&format!("{id},{secret}"));
        let keys = Keys::from_json(json.as_bytes()).unwrap();
        assert_eq!(**keys.to_json().unwrap(), *json.as_bytes());
    }
}
