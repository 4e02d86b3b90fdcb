//! Names, numbers and the JSON of a record's body, to the byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use zk_sensors::{MilliCelsius, Offset, Quality, Reading, Readings, SensorError, SensorId};

const ONE: &str = r#"{"readings":[{"sensor":"28-0000000a0001","at":"2026-11-23T11:20:44.123Z","celsius":21.437,"quality":"ok"}]}"#;

#[test]
fn a_record_of_one_reading_is_these_107_bytes() {
    let body = serde_json::to_string(&Readings {
        readings: vec![reading(Some(21_437), Quality::Ok)],
    });
    assert_eq!(body.unwrap(), ONE);
    assert_eq!(ONE.len(), 107);
}

#[test]
fn parse_then_write_is_the_identity() {
    for body in [
        ONE.to_owned(),
        r#"{"readings":[]}"#.to_owned(),
        ONE.replace("21.437", "-0.062"),
        ONE.replace("21.437", "0.0"),
        ONE.replace("21.437", "85.0"),
        ONE.replace("21.437", "-55.0"),
        ONE.replace("21.437", "124.937"),
        ONE.replace("21.437", "0.001"),
        ONE.replace("21.437", "2147483.647"),
        ONE.replace("21.437", "-2147483.648"),
        ONE.replace("21.437", "null").replace("ok", "empty"),
        ONE.replace("2026-11-23T11:20:44.123Z", "1970-01-01T00:00:00.000Z"),
        ONE.replace("2026-11-23T11:20:44.123Z", "9999-12-30T22:00:00.999Z"),
        ONE.replace("2026-11-23T11:20:44.123Z", "2028-02-29T23:59:59.999Z"),
    ] {
        assert_eq!(serde_json::to_string(&parse(&body).unwrap()).unwrap(), body);
    }
}

#[test]
fn order_white_space_and_the_spelling_of_a_number_are_free() {
    let readings = parse(ONE).unwrap();
    for body in [
        r#"{"readings":[{"quality":"ok","celsius":21.437,"at":"2026-11-23T11:20:44.123Z","sensor":"28-0000000a0001"}]}"#.to_owned(),
        ONE.replace(':', " :\n").replace("T11 :\n20 :\n44", "T11:20:44"),
        ONE.replace("21.437", "2.1437e1"),
        ONE.replace("21.437", "21.4370"),
        ONE.replace("ok", "\\u006fk"),
    ] {
        assert_eq!(parse(&body).unwrap(), readings, "{body}");
    }
    for number in ["85", "85.0", "85.000", "8.5E1", "850e-1"] {
        let body = ONE.replace("21.437", number);
        let value = parse(&body).unwrap().readings[0].value;
        assert_eq!(value, Some(MilliCelsius(85_000)), "{number}");
    }
}

#[test]
fn everything_else_is_refused() {
    let member = r#""quality":"ok""#;
    for body in [
        // another shape
        "".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        "[[]]".to_owned(),
        r#"{"readings":null}"#.to_owned(),
        r#"{"readings":{}}"#.to_owned(),
        r#"{"readings":[null]}"#.to_owned(),
        r#"{"readings":[[]]}"#.to_owned(),
        r#"{"readings":[{}]}"#.to_owned(),
        // members as an array, without their names
        r#"[[{"sensor":"28-0000000a0001","at":"2026-11-23T11:20:44.123Z","celsius":21.437,"quality":"ok"}]]"#.to_owned(),
        r#"{"readings":[["28-0000000a0001","2026-11-23T11:20:44.123Z",21.437,"ok"]]}"#.to_owned(),
        // members missing, repeated, unknown
        ONE.replace(r#""celsius":21.437,"#, ""),
        ONE.replace(r#""celsius":21.437,"#, "").replace("ok", "empty"),
        ONE.replace(r#""sensor":"28-0000000a0001","#, ""),
        ONE.replace(r#""at":"2026-11-23T11:20:44.123Z","#, ""),
        ONE.replace(",\"quality\":\"ok\"", ""),
        ONE.replace(member, &format!("{member},{member}")),
        ONE.replace(member, &format!("{member},\"celsius\":21.437")),
        ONE.replace(member, &format!("{member},\"site\":1")),
        ONE.replace("]}", "],\"readings\":[]}"),
        ONE.replace("]}", "],\"more\":1}"),
        ONE.replace("quality", "Quality"),
        // what follows
        format!("{ONE} {ONE}"),
        format!("{ONE}x"),
        // a sensor
        ONE.replace("28-0000000a0001", "28-0000000A0001"),
        ONE.replace("28-0000000a0001", "01-0000000a0001"),
        ONE.replace("\"28-0000000a0001\"", "28"),
        ONE.replace("\"28-0000000a0001\"", "null"),
        // a time
        ONE.replace("11:20:44.123Z", "11:20:44Z"),
        ONE.replace("11:20:44.123Z", "11:20:44.12Z"),
        ONE.replace("11:20:44.123Z", "11:20:44.123456Z"),
        ONE.replace("11:20:44.123Z", "11:20:44,123Z"),
        ONE.replace("11:20:44.123Z", "11:20:44.123z"),
        ONE.replace("11:20:44.123Z", "11:20:44.123+00:00"),
        ONE.replace("11:20:44.123Z", "11:20:44.123"),
        ONE.replace("11:20:44.123Z", "11:20:60.123Z"),
        ONE.replace("11:20:44.123Z", "24:00:00.000Z"),
        ONE.replace("T11", " 11"),
        ONE.replace("T11", "t11"),
        ONE.replace("2026-11-23", "2026-02-29"),
        ONE.replace("2026-11-23", "20261123"),
        ONE.replace("2026-11-23", "1969-12-31"),
        ONE.replace("2026-11-23", "+002026-11-23"),
        ONE.replace("2026-11-23", "-002026-11-23"),
        ONE.replace("2026-11-23", "9999-12-31"),
        ONE.replace("\"2026-11-23T11:20:44.123Z\"", "1795432844123"),
        // a temperature
        ONE.replace("21.437", "21.4375"),
        ONE.replace("21.437", "21.43700001"),
        ONE.replace("21.437", "0.0001"),
        ONE.replace("21.437", "\"21.437\""),
        ONE.replace("21.437", "[21.437]"),
        ONE.replace("21.437", "true"),
        ONE.replace("21.437", "NaN"),
        ONE.replace("21.437", "2147483.648"),
        ONE.replace("21.437", "-2147483.649"),
        ONE.replace("21.437", "2147484"),
        ONE.replace("21.437", "18446744073709551615"),
        ONE.replace("21.437", "-9223372036854775808"),
        ONE.replace("21.437", "1e300"),
        ONE.replace("21.437", "1e400"),
        // a quality
        ONE.replace("\"ok\"", "\"OK\""),
        ONE.replace("\"ok\"", "\"good\""),
        ONE.replace("\"ok\"", "\"\""),
        ONE.replace("\"ok\"", "null"),
        ONE.replace("\"ok\"", "{\"ok\":null}"),
        ONE.replace("\"ok\"", "5"),
        // a value that does not go with its quality
        ONE.replace("21.437", "null"),
        ONE.replace("ok", "empty"),
        ONE.replace("ok", "false-zero"),
        ONE.replace("21.437", "null").replace("ok", "power-on"),
    ] {
        assert!(parse(&body).is_err(), "{body}");
    }
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let mut early = reading(Some(0), Quality::Ok);
    early.at = "1969-12-31T23:59:59.999Z".parse().unwrap();
    for reading in [
        reading(None, Quality::Ok),
        reading(Some(0), Quality::Empty),
        early,
    ] {
        assert!(serde_json::to_string(&reading).is_err(), "{reading:?}");
    }
    // what is finer than a millisecond is cut off
    let mut fine = reading(Some(0), Quality::Ok);
    fine.at = "2026-11-23T11:20:44.123999999Z".parse().unwrap();
    let text = serde_json::to_string(&fine).unwrap();
    assert!(text.contains("44.123Z"), "{text}");
}

#[test]
fn qualities_have_stable_names_and_their_values() {
    for (name, has_value) in [
        ("crc", false),
        ("empty", false),
        ("false-zero", false),
        ("fault", false),
        ("garbled", false),
        ("ok", true),
        ("out-of-range", true),
        ("power-on", true),
        ("stale-suspect", true),
        ("unplugged", false),
        ("unreadable", false),
    ] {
        let quality: Quality = name.parse().unwrap();
        assert_eq!(quality.to_string(), name);
        assert_eq!(quality.has_value(), has_value, "{name}");
        let whole = reading(has_value.then_some(1), quality);
        let text = serde_json::to_string(&whole).unwrap();
        assert!(
            text.ends_with(&format!(r#""quality":"{name}"}}"#)),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Reading>(&text).unwrap(), whole);
    }
    let error = "x".repeat(1000).parse::<Quality>().unwrap_err();
    assert!(matches!(&error, SensorError::BadQuality { text } if text.len() == 40));
}

#[test]
fn sensors_are_named_as_the_kernel_names_them() {
    let names = [
        "10-000000000000",
        "22-0000000a0001",
        "28-0000000a0001",
        "28-ffffffffffff",
        "3b-0000000a0001",
        "42-0000000a0001",
    ];
    let ids = names.map(|name| name.parse::<SensorId>().unwrap());
    assert!(ids.is_sorted());
    for (name, id) in names.iter().zip(ids) {
        assert_eq!(id.to_string(), *name);
        assert_eq!(format!("{id:>17}"), format!("  {name}"));
        assert_eq!(format!("{id:?}"), format!("SensorId({name})"));
    }
    for name in [
        "",
        "-",
        "28",
        "28-",
        "-0000000a0001",
        "28-0000000a000",
        "28-0000000a00010",
        "28-0000000A0001",
        "3B-0000000a0001",
        "28-+000000a0001",
        "28--000000a0001",
        "28-0000000g0001",
        "28-000000\u{e9}a001",
        " 28-0000000a0001",
        "28-0000000a0001\n",
        "28 0000000a0001",
        "01-0000000a0001",
        "28.0000000a0001",
        "029-0000000a001",
    ] {
        assert!(
            matches!(name.parse::<SensorId>(), Err(SensorError::BadId { .. })),
            "{name:?}"
        );
    }
    let error = "é".repeat(1000).parse::<SensorId>().unwrap_err();
    assert!(matches!(&error, SensorError::BadId { text } if text.chars().count() == 40));
}

#[test]
fn temperatures_have_three_decimals_as_text() {
    for (value, text) in [
        (0, "0.000"),
        (1, "0.001"),
        (-1, "-0.001"),
        (-62, "-0.062"),
        (-999, "-0.999"),
        (-1000, "-1.000"),
        (21_437, "21.437"),
        (85_000, "85.000"),
        (i32::MAX, "2147483.647"),
        (i32::MIN, "-2147483.648"),
    ] {
        assert_eq!(MilliCelsius(value).to_string(), text);
    }
    assert_eq!(
        format!("{:>9}|{:+}", MilliCelsius(-62), MilliCelsius(62)),
        "   -0.062|+0.062"
    );
}

#[test]
fn an_offset_is_a_sensor_and_degrees() {
    let parse = |text: &str| text.parse::<Offset>();
    for (text, thousandths) in [
        ("0", 0),
        ("-0", 0),
        ("0.0", 0),
        ("0.25", 250),
        ("+0.25", 250),
        ("-0.25", -250),
        ("-0.062", -62),
        ("-0.001", -1),
        ("1.5", 1_500),
        ("9.999", 9_999),
        ("10", 10_000),
        ("-10.000", -10_000),
    ] {
        let text = format!("28-000005e2fdc3={text}");
        let offset = parse(&text).unwrap();
        assert_eq!(offset.sensor.to_string(), "28-000005e2fdc3");
        assert_eq!(offset.celsius, MilliCelsius(thousandths), "{text}");
        // as text and in serde
        assert_eq!(parse(&offset.to_string()).unwrap(), offset);
        let json = serde_json::to_string(&offset).unwrap();
        assert_eq!(json, format!("\"{offset}\""));
        assert_eq!(serde_json::from_str::<Offset>(&json).unwrap(), offset);
    }
    let large = "9".repeat(100);
    for degrees in [
        "",
        "-",
        "+",
        ".",
        ".5",
        "-.5",
        "5.",
        "0.2500",
        "0,25",
        "1e0",
        "0x1",
        " 0.25",
        "0.25 ",
        "0.25\n",
        "--1",
        "+-1",
        "1.-5",
        "1.+5",
        "1.2.3",
        "01",
        "00",
        "-01.5",
        "nan",
        "inf",
        "=1",
        "\u{2212}1",
        "\u{0661}",
        "1\u{e9}",
        &large,
    ] {
        let text = format!("28-000005e2fdc3={degrees}");
        let error = parse(&text).unwrap_err();
        assert!(
            matches!(&error, SensorError::BadOffset { text } if text.chars().count() <= 40),
            "{text:?}: {error}"
        );
        assert!(serde_json::from_value::<Offset>(text.into()).is_err());
    }
    for degrees in ["10.001", "-10.001", "11", "-85", "999999.999"] {
        let error = parse(&format!("28-000005e2fdc3={degrees}")).unwrap_err();
        let far = matches!(&error, SensorError::OffsetTooLarge { .. });
        assert!(
            far && error.to_string().contains("28-000005e2fdc3"),
            "{error}"
        );
    }
    for text in ["", "28-000005e2fdc3", "28-000005e2fdc3:0.25", "0.25"] {
        let error = parse(text).unwrap_err();
        assert!(matches!(&error, SensorError::BadOffset { .. }), "{error}");
    }
    for text in [
        "01-000005e2fdc3=0.25",
        "28-000005E2FDC3=0.25",
        "=0.25",
        " 28-000005e2fdc3=1",
    ] {
        let error = parse(text).unwrap_err();
        assert!(matches!(&error, SensorError::BadId { .. }), "{error}");
    }
    for json in ["0.25", "null", "[]", "{}", r#"{"28-000005e2fdc3":0.25}"#] {
        assert!(serde_json::from_str::<Offset>(json).is_err(), "{json}");
    }
}

fn parse(body: &str) -> Result<Readings, serde_json::Error> {
    serde_json::from_str(body)
}

fn reading(value: Option<i32>, quality: Quality) -> Reading {
    Reading {
        sensor: "28-0000000a0001".parse().unwrap(),
        at: "2026-11-23T11:20:44.123Z".parse().unwrap(),
        value: value.map(MilliCelsius),
        quality,
    }
}
