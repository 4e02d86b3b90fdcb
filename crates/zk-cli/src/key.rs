use std::ffi::OsStr;
use std::fmt::Display;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};
use zk_hsm::HsmUri;

/// Parses `--hsm URI`, for `value_parser`. What is wrong with one is said without
/// the URI: a PIN may stand in it where none belongs.
#[derive(Clone, Copy, Debug)]
pub struct KeyUri;

impl TypedValueParser for KeyUri {
    type Value = HsmUri;

    fn parse_ref(
        &self,
        command: &Command,
        _: Option<&Arg>,
        value: &OsStr,
    ) -> Result<HsmUri, clap::Error> {
        let refused = |problem: &dyn Display| {
            let help = "For more information, try '--help'.";
            let text = format!("invalid value for '--hsm <URI>': {problem}\n\n{help}\n");
            clap::Error::raw(ErrorKind::ValueValidation, text).with_cmd(command)
        };
        let text = value.to_str().ok_or_else(|| refused(&"it is not UTF-8"))?;
        text.parse().map_err(|error| refused(&error))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Arguments {
        #[arg(long, value_parser = KeyUri)]
        hsm: HsmUri,
    }

    #[test]
    fn a_pin_in_a_uri_that_is_refused_is_not_repeated() {
        let given = |uri| Arguments::try_parse_from(["zk", "--hsm", uri]);
        assert_eq!(
            given("zymkey:slot=0").unwrap().hsm.to_string(),
            "zymkey:slot=0"
        );
        let refused = given("pkcs11:token=a;object=b?pin-value=13579").unwrap_err();
        let told = refused.to_string();
        assert!(
            told.starts_with("error: invalid value for '--hsm <URI>'"),
            "{told}"
        );
        assert!(!told.contains("13579"), "{told}");
    }
}
