//! What opening a key file writes to the log. Alone in its file: the log is the
//! whole process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::Write;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use zk_hsm::{Hsm, Options, create_soft_key};

#[test]
fn opening_warns_of_a_development_key() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .init();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key.pem");
    let uri = create_soft_key(&path).unwrap();
    assert_eq!(log.text(), "");

    Hsm::open(&uri, Options::default()).unwrap();

    let text = log.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("WARN"), "{text}");
    assert!(text.contains("DEVELOPMENT KEY"), "{text}");
    assert!(text.contains(&format!("soft:{}", path.display())), "{text}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
