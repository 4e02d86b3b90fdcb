use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::StoreError;

/// Where a store is: `file:PATH` or `dynamodb:REGION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUri {
    /// `file:PATH`: one file, served by an engine inside the process. Several
    /// processes of one machine may have it open; the file system must be a
    /// local one.
    File(PathBuf),
    /// `dynamodb:REGION`: DynamoDB, with credentials from the usual places of the
    /// AWS SDKs. `AWS_ENDPOINT_URL_DYNAMODB` or `AWS_ENDPOINT_URL` lead to
    /// anything else that speaks its protocol.
    DynamoDb {
        /// The AWS region, for example `eu-central-1`.
        region: String,
    },
}

impl FromStr for StoreUri {
    type Err = StoreError;

    fn from_str(uri: &str) -> Result<Self, StoreError> {
        let wrong = |rule| {
            Err(StoreError::Uri {
                given: uri.to_owned(),
                rule,
            })
        };
        match uri.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("dynamodb", region)) => {
                let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                if (1..=32).contains(&region.len()) && region.bytes().all(legal) {
                    Ok(Self::DynamoDb {
                        region: region.to_owned(),
                    })
                } else {
                    wrong("dynamodb: is followed by a region, for example dynamodb:eu-central-1")
                }
            }
            _ => wrong("a store is file:PATH or dynamodb:REGION"),
        }
    }
}

/// Writes what [`StoreUri::from_str`] reads.
impl fmt::Display for StoreUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::DynamoDb { region } => write!(f, "dynamodb:{region}"),
        }
    }
}
