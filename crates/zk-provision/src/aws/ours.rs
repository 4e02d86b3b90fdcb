//! What of AWS is ours, what is told of it, and how long it is waited for.

use std::fmt::{self, Write};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Error;
use crate::aws::account::{Names, TAG};
use crate::hand::Hand;
use crate::report::{Action, Item};

/// The tag that says which form of set-up it belongs to.
pub(crate) const VERSION_TAG: &str = "zk:version";
/// The one that this program makes.
pub(crate) const VERSION: u32 = 1;

impl Names {
    /// The tags of everything of ours that can have any.
    pub(crate) fn tags(&self) -> [(&'static str, String); 2] {
        [
            (TAG, self.prefix.clone()),
            (VERSION_TAG, VERSION.to_string()),
        ]
    }

    /// Whether what was found under one of our names, with these tags, is ours;
    /// if so, whether the tags are all as they are to be.
    pub(crate) fn own<K, V>(
        &self,
        resource: &str,
        tags: impl IntoIterator<Item = (K, V)>,
    ) -> Result<bool, Error>
    where
        K: AsRef<str>,
        V: AsRef<str>,
    {
        let (mut is_ours, mut version) = (false, None);
        for (key, value) in tags {
            match key.as_ref() {
                TAG => is_ours = value.as_ref() == self.prefix,
                VERSION_TAG => version = Some(value.as_ref().to_owned()),
                _ => {}
            }
        }
        if !is_ours {
            return Err(Error::NotOurs {
                resource: resource.to_owned(),
            });
        }
        match version {
            None => Ok(false),
            Some(version) => match version.parse::<u32>() {
                Ok(number) if number <= VERSION => Ok(number == VERSION),
                _ => Err(Error::NewerSetUp {
                    resource: resource.to_owned(),
                    version,
                }),
            },
        }
    }
}

impl Hand<'_> {
    /// Tells of something in the account.
    pub(crate) fn resource(
        &mut self,
        action: Action,
        kind: &'static str,
        name: &str,
        reason: impl Into<String>,
    ) {
        let name = name.to_owned();
        self.step(action, Item::Resource { kind, name }, reason);
    }

    /// Tells of something that was just made, or was there and, as far as it had
    /// drifted, was changed.
    pub(crate) fn mended(&mut self, kind: &'static str, name: &str, is_new: bool, drift: &Drift) {
        let (action, reason) = if is_new {
            (Action::Created, String::new())
        } else {
            drift.told()
        };
        self.resource(action, kind, name, reason);
    }
}

/// In what something is not as it is to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Drift(String);

impl Drift {
    /// Notes what is amiss, if it is. Answers whether.
    pub(crate) fn note(&mut self, is_amiss: bool, what: impl fmt::Display) -> bool {
        if is_amiss {
            let comma = if self.0.is_empty() { "" } else { ", " };
            // to a String it doesn't fail
            let _ = write!(self.0, "{comma}{what}");
        }
        is_amiss
    }

    /// Notes that a property has another value than it is to have. Answers
    /// whether.
    pub(crate) fn compare<T: PartialEq + fmt::Display>(
        &mut self,
        what: &str,
        found: Option<T>,
        wanted: &T,
    ) -> bool {
        match found {
            Some(found) if found == *wanted => false,
            Some(found) => self.note(true, format_args!("{what} is {found}, not {wanted}")),
            None => self.note(true, format_args!("{what} is not {wanted}")),
        }
    }

    /// What is done to something that was there, and why.
    pub(crate) fn told(&self) -> (Action, String) {
        if self.is_none() {
            (Action::Kept, String::new())
        } else {
            (Action::Changed, self.0.clone())
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Asks until there is an answer, or an error that doesn't pass by itself, or
/// patience ends; then that is the last error.
///
/// What AWS has done may take a while until all of it knows.
pub(crate) async fn patiently<T>(
    patience: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, Error>,
    passes: impl Fn(&Error) -> bool,
) -> Result<T, Error> {
    let end = Instant::now() + patience;
    let mut pause = Duration::from_millis(100);
    loop {
        match ask().await {
            Err(error) if passes(&error) && Instant::now() + pause < end => {}
            answer => return answer,
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(4));
    }
}

/// What was made a moment ago may not be known everywhere yet.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// For what AWS makes, changes or takes away in its own time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            prefix: "zk".into(),
            partition: "aws".into(),
            region: "eu-central-1".into(),
            account: "123456789012".into(),
        }
    }

    #[test]
    fn what_is_ours_says_so() {
        let own = |tags: &[(&str, &str)]| names().own("table t", tags.iter().copied());
        assert!(own(&[(TAG, "zk"), (VERSION_TAG, "1"), ("team", "a")]).unwrap());
        // half-tagged, or by an older version: ours, and to be tagged
        assert!(!own(&[(TAG, "zk")]).unwrap());
        assert!(!own(&[(TAG, "zk"), (VERSION_TAG, "0")]).unwrap());
        for tags in [
            &[][..],
            &[(TAG, "zk2")],
            &[(VERSION_TAG, "1")],
            &[("zk", TAG)],
        ] {
            assert!(matches!(own(tags), Err(Error::NotOurs { .. })), "{tags:?}");
        }
        for version in ["2", "1.1", "", "-1"] {
            let newer = own(&[(TAG, "zk"), (VERSION_TAG, version)]);
            assert!(matches!(newer, Err(Error::NewerSetUp { .. })), "{version}");
        }
    }

    #[test]
    fn drift_says_what_was_and_what_is_to_be() {
        let mut drift = Drift::default();
        assert!(!drift.compare("memory", Some(128), &128));
        assert_eq!(drift.told(), (Action::Kept, String::new()));
        assert!(drift.compare("memory", Some(256), &128));
        assert!(drift.compare("handler", None, &"bootstrap"));
        assert!(drift.note(true, "it has layers"));
        let said = "memory is 256, not 128, handler is not bootstrap, it has layers";
        assert_eq!(drift.told(), (Action::Changed, said.into()));
    }

    #[tokio::test]
    async fn patience_ends() {
        let not_ready = || Error::NotReady {
            resource: "table t".into(),
            state: "CREATING".into(),
        };
        let is_passing = |error: &Error| matches!(error, Error::NotReady { .. });
        let mut asked = 0;
        let third = async || {
            asked += 1;
            if asked < 3 {
                Err(not_ready())
            } else {
                Ok(asked)
            }
        };
        assert_eq!(patiently(PATIENCE, third, is_passing).await.unwrap(), 3);

        let mut asked = 0;
        let never = async || {
            asked += 1;
            Err::<(), _>(not_ready())
        };
        let patience = Duration::from_millis(350);
        let ended = patiently(patience, never, is_passing).await;
        assert!(matches!(ended, Err(Error::NotReady { .. })), "{ended:?}");
        // growing pauses: after 100 and 300 ms
        assert!((1..=3).contains(&asked), "{asked}");

        let mut asked = 0;
        let other = async || {
            asked += 1;
            Err::<(), _>(Error::NoRegion)
        };
        let ended = patiently(PATIENCE, other, is_passing).await;
        assert!(matches!(ended, Err(Error::NoRegion)), "{ended:?}");
        assert_eq!(asked, 1);
    }
}
