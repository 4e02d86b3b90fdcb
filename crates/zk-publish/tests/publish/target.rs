//! Endpoints and topics.

use proptest::prelude::*;
use zk_publish::{Target, TargetError};

#[test]
fn endpoints_are_hosts_with_an_optional_port() {
    for (endpoint, host, port) in [
        ("example.com", "example.com", 8443),
        ("example.com:443", "example.com", 443),
        ("localhost:1", "localhost", 1),
        ("192.0.2.7:65535", "192.0.2.7", 65535),
        ("[2001:db8::1]", "2001:db8::1", 8443),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
    ] {
        let target = Target::new(endpoint, "t").unwrap();
        assert_eq!((target.host(), target.port()), (host, port), "{endpoint}");
    }
    for endpoint in [
        "",
        ":443",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:+443",
        "example.com:443:443",
        "https://example.com",
        "example.com/topics",
        "example.com?x",
        "user@example.com",
        "exa mple.com",
        "-example.com",
        "2001:db8::1",
        "[2001:db8::1",
        "[2001:db8::1]443",
        "[example.com]:443]",
    ] {
        let error = Target::new(endpoint, "t").unwrap_err();
        assert!(
            matches!(error, TargetError::Endpoint { .. }),
            "{endpoint}: {error:?}"
        );
        assert!(error.to_string().contains("host:port"), "{error}");
    }
}

#[test]
fn topics_are_those_that_can_be_published_to() {
    let slashes = "a/b/c/d/e/f/g/h";
    let long = "a".repeat(256);
    for topic in [
        "t",
        "Zymkey/pi-01",
        "$aws/rules/zk/Zymkey/pi-01",
        slashes,
        &long,
        "ä ö",
        "/",
    ] {
        assert_eq!(Target::new("localhost", topic).unwrap().topic(), topic);
    }
    let (slashes, long) = (format!("{slashes}/i"), format!("{long}a"));
    for topic in ["", "a/+", "#", "a\0b", "a\nb", &slashes, &long] {
        let error = Target::new("localhost", topic).unwrap_err();
        assert!(
            matches!(error, TargetError::Topic { .. }),
            "{topic:?}: {error:?}"
        );
    }
}

#[test]
fn a_target_shows_as_its_url() {
    for (topic, path) in [
        ("Zymkey/pi-01", "Zymkey%2Fpi-01"),
        ("$aws/x", "%24aws%2Fx"),
        ("a b&c=d?e%f", "a%20b%26c%3Dd%3Fe%25f"),
        ("ä-._~", "%C3%A4-._~"),
    ] {
        let target = Target::new("localhost:1", topic).unwrap();
        assert_eq!(
            target.to_string(),
            format!("https://localhost:1/topics/{path}?qos=1")
        );
    }
    let target = Target::new("[2001:db8::1]", "t").unwrap();
    assert_eq!(
        target.to_string(),
        "https://[2001:db8::1]:8443/topics/t?qos=1"
    );
}

proptest! {
    #[test]
    fn nothing_makes_it_panic_and_any_topic_comes_out_as_it_went_in(
        endpoint in ".{0,40}",
        topic in ".{0,300}",
    ) {
        let _ = Target::new(&endpoint, &topic);
        if let Ok(target) = Target::new("localhost", &topic) {
            let url = target.to_string();
            let path = url
                .strip_prefix("https://localhost:8443/topics/")
                .and_then(|rest| rest.strip_suffix("?qos=1"))
                .unwrap();
            prop_assert!(path.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
            let decoded = percent_encoding::percent_decode_str(path).decode_utf8().unwrap();
            prop_assert_eq!(decoded, topic);
        }
    }
}
