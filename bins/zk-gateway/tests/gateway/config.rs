//! The example of a configuration.

use std::path::Path;

use zk_gateway::{Config, Limits, Overrides};

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
