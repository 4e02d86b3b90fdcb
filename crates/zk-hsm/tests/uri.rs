//! What is an HSM URI and what is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use proptest::prelude::*;
use zk_hsm::{BackendKind, HsmUri, UriError};

/// Given, and as it is written back.
const GOOD: &[(&str, &str)] = &[
    ("zymkey:slot=0", "zymkey:slot=0"),
    ("zymkey:slot=655", "zymkey:slot=655"),
    (
        "zymkey:slot=16?module-path=/usr/lib/libzk_app_utils.so",
        "zymkey:slot=16?module-path=/usr/lib/libzk_app_utils.so",
    ),
    ("soft:/etc/zk/key.pem", "soft:/etc/zk/key.pem"),
    ("soft:/a b/50%25?.pem", "soft:/a b/50%25?.pem"),
    ("soft:/schlüssel.pem", "soft:/schlüssel.pem"),
    ("pkcs11:token=t;object=o", "pkcs11:token=t;object=o"),
    ("pkcs11:object=o;token=t", "pkcs11:token=t;object=o"),
    (
        "pkcs11:token=a%20b%3B;object=%c3%A4",
        "pkcs11:token=a%20b%3B;object=%C3%A4",
    ),
    ("pkcs11:token=a&b;object=o", "pkcs11:token=a%26b;object=o"),
    (
        "pkcs11:serial=12;id=%01%ff;type=private",
        "pkcs11:serial=12;id=%01%FF",
    ),
    (
        "pkcs11:model=m;manufacturer=SoftHSM%20project;serial=1;token=t;object=o;id=%00",
        "pkcs11:token=t;manufacturer=SoftHSM%20project;serial=1;model=m;object=o;id=%00",
    ),
    (
        "pkcs11:token=t;object=o?pin-source=file:/etc/zk/pin&module-path=/usr/lib/p11.so",
        "pkcs11:token=t;object=o?module-path=/usr/lib/p11.so&pin-source=file:/etc/zk/pin",
    ),
    (
        "pkcs11:token=t;object=o?pin-source=file:///etc/zk/pin",
        "pkcs11:token=t;object=o?pin-source=file:/etc/zk/pin",
    ),
    (
        "pkcs11:token=t;object=o?pin-source=credential:hsm-pin",
        "pkcs11:token=t;object=o?pin-source=credential:hsm-pin",
    ),
    (
        "pkcs11:token=t;object=o?pin-source=env:HSM_PIN",
        "pkcs11:token=t;object=o?pin-source=env:HSM_PIN",
    ),
];

#[test]
fn good_ones_are_written_back_in_one_form() {
    for (given, canonical) in GOOD {
        let uri: HsmUri = given.parse().unwrap_or_else(|e| panic!("{given}: {e}"));
        assert_eq!(uri.to_string(), *canonical);
        assert_eq!(canonical.parse::<HsmUri>().unwrap(), uri);
    }
    let kind = |text: &str| text.parse::<HsmUri>().unwrap().backend();
    assert_eq!(kind("zymkey:slot=0"), BackendKind::Zymkey);
    assert_eq!(kind("soft:/k"), BackendKind::Soft);
    assert_eq!(kind("pkcs11:token=t;id=%01"), BackendKind::Pkcs11);
}

#[test]
fn bad_ones_are_refused_for_the_right_reason() {
    use UriError::{
        Attribute, Malformed, Missing, PinValue, Repeated, Scheme, SoftPath, TooLong, Value,
    };
    macro_rules! refused {
        ($($text:expr => $error:pat),+ $(,)?) => { $(
            let error = $text.parse::<HsmUri>().unwrap_err();
            assert!(matches!(error, $error), "{}: {error:?}", $text);
        )+ };
    }
    refused! {
        "" => Scheme, "zymkey" => Scheme, "Zymkey:slot=0" => Scheme, " soft:/k" => Scheme,
        "file:/k" => Scheme, "/etc/zk/key.pem" => Scheme, "tpm2:handle=1" => Scheme,

        "soft:" => SoftPath, "soft:key.pem" => SoftPath, "soft:./key.pem" => SoftPath,
        "soft:~/key.pem" => SoftPath, "soft:/dir/" => SoftPath, "soft:/a\nb" => SoftPath,
        "soft:/a\0b" => SoftPath,
        format!("soft:/{}", "x".repeat(1024)) => TooLong { len: 1030 },

        "zymkey:" => Malformed { .. }, "zymkey:0" => Malformed { .. },
        "zymkey:slot" => Malformed { .. }, "zymkey:slot=0;" => Malformed { .. },
        "zymkey:SLOT=0" => Malformed { .. }, "zymkey:slot=0?" => Malformed { .. },
        "zymkey:?module-path=/l" => Malformed { .. },
        "zymkey:slot=" => Value { name: "slot", .. }, "zymkey:slot=-1" => Value { .. },
        "zymkey:slot=00" => Value { .. }, "zymkey:slot=+1" => Value { .. },
        "zymkey:slot= 0" => Value { .. }, "zymkey:slot=656" => Value { .. },
        "zymkey:slot=65536" => Value { .. }, "zymkey:slot=99999999999999" => Value { .. },
        "zymkey:slot=0;slot=0" => Repeated { .. }, "zymkey:slot=0;key=1" => Attribute { .. },
        "zymkey:slot=0?slot=1" => Attribute { .. },
        "zymkey:slot=0;module-path=/l" => Attribute { .. },
        "zymkey:slot=0?module-path=lib.so" => Value { name: "module-path", .. },
        "zymkey:slot=0?module-path=/a&module-path=/b" => Repeated { .. },

        "pkcs11:" => Malformed { .. }, "pkcs11:token=t" => Missing { .. },
        "pkcs11:object=o" => Missing { .. }, "pkcs11:model=m;object=o" => Missing { .. },
        "pkcs11:token=;object=o" => Value { name: "token", .. },
        "pkcs11:token=a b;object=o" => Value { name: "token", .. },
        "pkcs11:token=a/b;object=o" => Value { name: "token", .. },
        "pkcs11:token=t;object=%" => Value { name: "object", .. },
        "pkcs11:token=t;object=%0" => Value { name: "object", .. },
        "pkcs11:token=t;object=%0g" => Value { name: "object", .. },
        "pkcs11:token=t;object=%+1" => Value { name: "object", .. },
        "pkcs11:token=t;object=%ff" => Value { name: "object", .. },
        "pkcs11:token=t;object=%00" => Value { name: "object", .. },
        "pkcs11:token=t;object=ä" => Value { name: "object", .. },
        "pkcs11:token=t;object=o;type=cert" => Value { name: "type", .. },
        "pkcs11:token=t;object=o;object=p" => Repeated { .. },
        "pkcs11:token=t;object=o;slot-id=1" => Attribute { .. },
        "pkcs11:token=t;object=o?module-name=p11" => Attribute { .. },
        "pkcs11:token=t;object=o?module-path=p11.so" => Value { name: "module-path", .. },
        "pkcs11:token=t;object=o?pin-source=1234" => Value { name: "pin-source", .. },
        "pkcs11:token=t;object=o?pin-source=pin.txt" => Value { name: "pin-source", .. },
        "pkcs11:token=t;object=o?pin-source=file:pin.txt" => Value { name: "pin-source", .. },
        "pkcs11:token=t;object=o?pin-source=file://host/pin" => Value { name: "pin-source", .. },
        "pkcs11:token=t;object=o?pin-source=file:////pin" => Value { name: "pin-source", .. },
        "pkcs11:token=t;object=o?pin-source=%7Ccat%20pin" => Value { name: "pin-source", .. },
        "pkcs11:token=t;object=o?pin-source=credential:a/b" => Value { name: "pin-source", .. },
        "pkcs11:token=t;object=o?pin-source=credential:" => Value { name: "pin-source", .. },
        "pkcs11:token=t;object=o?pin-value=1234" => PinValue,
        "pkcs11:token=t;object=o;pin-value=1234" => PinValue,
        "zymkey:slot=0?pin-value=1234" => PinValue,
    }
}

#[test]
fn a_pin_in_a_wrong_place_is_in_no_message() {
    for text in [
        "pkcs11:token=t;object=o?pin-value=8317402",
        "pkcs11:token=t;object=o;pin-value=8317402",
        "pkcs11:token=t;object=o?pin=8317402",
        "pkcs11:token=t;object=o?pin-source=8317402",
        "pkcs11:token=t;object=o?8317402",
        "pkcs11:token=t;object=o?pin-value8317402=",
        "pkcs11:token=t;object=o?pin-value%3D8317402",
        "pkcs11:token=t 8317402;object=o",
        "8317402:slot=0",
        "zymkey:slot=8317402",
        "soft:8317402",
    ] {
        let error = text.parse::<HsmUri>().unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("8317402"),
            "{error:?}"
        );
    }
}

#[test]
fn the_longest_is_still_parsed_again() {
    let uri = |brackets: usize| format!("zymkey:slot=0?module-path=/{}", "(".repeat(brackets));
    // 27 bytes, and three for each bracket once it is encoded
    let longest: HsmUri = uri(332).parse().unwrap();
    assert_eq!(longest.to_string().len(), 1023);
    assert_eq!(longest.to_string().parse::<HsmUri>(), Ok(longest));
    assert_eq!(
        uri(333).parse::<HsmUri>(),
        Err(UriError::TooLong { len: 1026 })
    );
}

#[test]
fn a_path_becomes_a_uri_as_it_stands() {
    let uri = HsmUri::soft("/var/lib/zk/my key%.pem").unwrap();
    assert_eq!(uri.to_string(), "soft:/var/lib/zk/my key%.pem");
    assert_eq!(HsmUri::soft("key.pem"), Err(UriError::SoftPath));
    let not_utf8: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"/\xff");
    assert_eq!(HsmUri::soft(not_utf8), Err(UriError::SoftPath));
}

proptest! {
    #[test]
    fn no_text_panics_and_what_parses_is_stable(
        scheme in prop::sample::select(vec!["", "zymkey:", "soft:", "pkcs11:token=t;object=o"]),
        rest in ".*",
    ) {
        if let Ok(uri) = format!("{scheme}{rest}").parse::<HsmUri>() {
            prop_assert_eq!(uri.to_string().parse::<HsmUri>().unwrap(), uri);
        }
    }

    #[test]
    fn any_label_survives(token in "\\PC{1,40}", object in "\\PC{1,40}") {
        let encode = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
        let text = format!("pkcs11:token={};object={}", encode(&token), encode(&object));
        let uri: HsmUri = text.parse().unwrap();
        prop_assert_eq!(uri.to_string().parse::<HsmUri>().unwrap(), uri);
    }
}
