//! What takes the engine's place where it is not built: no file opens.

use std::path::Path;

use aws_sdk_dynamodb::config::SharedHttpClient;
use tokio::sync::watch;

use crate::{StoreError, StoreUri};

pub(crate) async fn open(
    path: &Path,
) -> Result<(SharedHttpClient, watch::Receiver<()>), StoreError> {
    Err(refused(path))
}

pub(crate) fn create(path: &Path) -> Result<(), StoreError> {
    Err(refused(path))
}

fn refused(path: &Path) -> StoreError {
    StoreError::Uri {
        given: StoreUri::File(path.to_owned()).to_string(),
        rule: "this program is built without the engine for files: a store is dynamodb:REGION",
    }
}

#[cfg(test)]
mod tests {
    use crate::{Options, Store};

    #[tokio::test]
    async fn a_file_is_refused_and_none_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zk.db");
        let uri = format!("file:{}", path.display()).parse().unwrap();
        for refused in [
            Store::open(&uri, Options::default()).await,
            Store::create(&uri, Options::default()).await,
        ] {
            let said = refused.unwrap_err().to_string();
            assert!(said.contains("built without the engine"), "{said}");
        }
        assert!(!path.exists());
    }
}
