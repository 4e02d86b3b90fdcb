//! Where readings go.

use zk_provision::LocalSetup;

use crate::arguments::{Arguments, Command, Target};

/// Where readings go, and why there.
pub(crate) struct Chosen {
    target: Target,
    /// Nobody has said so, and nothing is there yet.
    pub(crate) is_default: bool,
}

impl Chosen {
    pub(crate) fn is_aws(&self) -> bool {
        self.target == Target::Aws
    }
}

/// Where the command line says; else what the directory was set up for; a new one
/// is for AWS.
pub(crate) fn of(setup: &LocalSetup, arguments: &Arguments) -> anyhow::Result<Chosen> {
    let there = |name: &str| setup.dir().join(name).exists();
    let found = if there("aws.toml") {
        Some(Target::Aws)
    } else if there("gateway") || there("ca/gateway-ca.crt.pem") {
        Some(Target::Local)
    } else {
        None
    };
    let is_gateway = matches!(arguments.command, Command::Gateway(_));
    if is_gateway && (arguments.target == Some(Target::Aws) || found == Some(Target::Aws)) {
        anyhow::bail!(
            "there is no gateway where readings go to AWS: for one of your own, name another \
             directory with --dir, and --target local"
        );
    }
    let said = arguments
        .target
        .or_else(|| is_gateway.then_some(Target::Local));
    match (said, found) {
        (Some(said), Some(found)) if said != found => anyhow::bail!(
            "{} was set up for {}, not for {}: leave --target out, or name another directory with \
             --dir",
            setup.dir().display(),
            name(found),
            name(said)
        ),
        (said, found) => Ok(Chosen {
            target: said.or(found).unwrap_or(Target::Aws),
            is_default: said.or(found).is_none(),
        }),
    }
}

fn name(target: Target) -> &'static str {
    match target {
        Target::Aws => "AWS",
        Target::Local => "a gateway",
    }
}
