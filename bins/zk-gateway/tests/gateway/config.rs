//! The example of a configuration.

use std::path::Path;

use zk_gateway::{Config, Error, Limits, Overrides};

#[test]
fn the_example_says_what_holds_without_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("gateway.example.toml");
    let config = Config::load(&path, Overrides::default()).unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.listen, "0.0.0.0:8443".parse().unwrap());
    assert_eq!(config.metrics, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(
        config.store,
        "file:/var/lib/zk-gateway/readings.db".parse().unwrap()
    );
    // relative to the file
    assert_eq!(config.tls.key, path.with_file_name("gateway.key.pem"));
}

#[test]
fn a_clock_that_was_never_set_is_told() {
    let after_start = std::time::UNIX_EPOCH + std::time::Duration::from_secs(90);
    let told = Error::check_clock(after_start).unwrap_err().to_string();
    assert!(told.contains("1970-01-01T00:01:30.000Z"), "{told}");
    Error::check_clock(std::time::SystemTime::now()).unwrap();
}
