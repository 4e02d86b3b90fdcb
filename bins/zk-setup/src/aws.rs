//! The commands where readings go to AWS.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use zk_provision::{
    Action, Architecture, AwsDesired, AwsOptions, AwsPlace, AwsSetup, Checked, Destroy,
    FunctionZip, Item, LocalSetup, Others, Secrets, Step,
};

use crate::arguments::{
    Apply, Arguments, CaCommand, Command, DesiredArguments, DeviceCommand, DeviceRotate,
    FunctionArguments, PassphraseSource, Policy,
};
use crate::desired::Wanted;
use crate::file::{AwsTable, GatewayTable, SetupFile};
use crate::outcome::{Applied, Outcome};
use crate::self_test::SelfTest;
use crate::target::Chosen;
use crate::{desired, outcome, passphrase, passphrases, question, wanted_device};

/// Does what the command line says.
pub(crate) async fn run(
    arguments: &Arguments,
    chosen: &Chosen,
    now: SystemTime,
    begun: Instant,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    let place = Place { arguments, chosen };
    let measured = |outcome: Outcome, setup: &AwsSetup| {
        let outcome = outcome.measured(setup.calls(), begun.elapsed());
        Ok(outcome.placed(setup))
    };
    match &arguments.command {
        Command::Plan(given) => {
            let (setup, desired, _) = place.desired(given).await?;
            let plan = setup.plan(&desired, now).await?;
            measured(outcome::plan(&plan), &setup)
        }
        Command::Apply(given) => {
            let (setup, outcome) = apply(&place, given, now, say).await?;
            measured(outcome, &setup)
        }
        Command::Status(given) => {
            let (setup, desired, _) = place.desired(given).await?;
            let plan = setup.plan(&desired, now).await?;
            let devices = setup.devices().await?;
            let expiries = setup.local().expiries(now)?;
            measured(outcome::status(&plan, &devices, &expiries), &setup)
        }
        Command::Check(given) => {
            let setup = place.connect(&AwsTable::default()).await?;
            // what its code is to be isn't known without it, all the rest is
            let function = match function(&setup, given, &AwsTable::default()).await {
                Err(_) if given.lambda_zip.is_none() => None,
                found => found?,
            };
            let found = check(&setup, function.as_ref(), now).await;
            measured(outcome::checked(&found), &setup)
        }
        Command::Destroy(given) => {
            let setup = place.connect(&AwsTable::default()).await?;
            let has_prefix = arguments.aws.prefix.is_some();
            let outcome = destroy(&setup, given, has_prefix, say).await?;
            measured(outcome, &setup)
        }
        Command::Ca(CaCommand::Init(source)) => {
            let setup = place.connect(&AwsTable::default()).await?;
            let outcome = init_authority(&setup, source, now).await?;
            measured(outcome, &setup)
        }
        Command::Ca(CaCommand::Show) => {
            let setup = place.connect(&AwsTable::default()).await?;
            let entries = setup.local().authorities()?;
            let status = match &entries[..] {
                [] => None,
                _ => setup.authority_status().await?,
            };
            measured(outcome::shown_authorities(&entries, Some(status)), &setup)
        }
        Command::Device(command) => {
            let setup = place.connect(&AwsTable::default()).await?;
            let outcome = device(&setup, command, now).await?;
            measured(outcome, &setup)
        }
        Command::Policy(given) => policy(&place, given).await,
        // these never come here
        Command::Credentials(_) | Command::Cost(_) | Command::Gateway(_) | Command::Template => {
            bail!("not a command for AWS")
        }
    }
}

/// Where the command line leads.
struct Place<'a> {
    arguments: &'a Arguments,
    chosen: &'a Chosen,
}

impl Place<'_> {
    /// The account, as the command line says, then the environment, the file, the
    /// directory.
    async fn connect(&self, table: &AwsTable) -> anyhow::Result<AwsSetup> {
        let given = &self.arguments.aws;
        let from_file = table.region.clone();
        let from_file = from_file.filter(|_| region_of_environment().is_none());
        let options = AwsOptions {
            profile: given.profile.clone(),
            region: given.region.clone().or(from_file),
            endpoint_url: given.endpoint_url.clone(),
            prefix: given.prefix.clone().or_else(|| table.prefix.clone()),
        };
        let setup = AwsSetup::connect(&self.arguments.dir, &options).await;
        let setup = self.explained(setup.map_err(anyhow::Error::from))?;
        warn_of_overrides(&setup);
        Ok(setup)
    }

    /// Who has not thought of AWS is told why it is asked.
    fn explained<T>(&self, done: anyhow::Result<T>) -> anyhow::Result<T> {
        if !self.chosen.is_default {
            return done;
        }
        done.with_context(|| {
            format!(
                "nothing is set up in {} yet, so this goes to AWS, and did not get far: mend that, \
                 or, for a gateway of your own, give --target local",
                self.arguments.dir.display()
            )
        })
    }

    /// What is to be, and where.
    async fn desired(
        &self,
        given: &DesiredArguments,
    ) -> anyhow::Result<(AwsSetup, AwsDesired, Wanted)> {
        ensure!(
            given.names.is_empty() && given.listen.is_none() && given.store.is_none(),
            "--name, --listen and --store are for a gateway, --target local; readings of this \
             set-up go to AWS"
        );
        let file = desired::file(given)?;
        if file
            .as_ref()
            .is_some_and(|file| file.gateway != GatewayTable::default())
        {
            bail!("[gateway] in the file is for --target local; readings of this set-up go to AWS");
        }
        let table = file.as_ref().map(|file: &SetupFile| file.aws.clone());
        let table = table.unwrap_or_default();
        let setup = self.connect(&table).await?;
        let function = self.explained(function(&setup, &given.function, &table).await)?;
        let roots = table.roots.as_ref().map(|path| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        });
        let roots = roots.transpose()?;
        let wanted = desired::wanted(&LocalSetup::new(&self.arguments.dir), given, file)?;
        let desired = AwsDesired {
            function,
            roots,
            owners: wanted.owners.clone(),
            devices: wanted.devices.clone(),
            others: wanted.others.clone(),
        };
        Ok((setup, desired, wanted))
    }
}

async fn apply(
    place: &Place<'_>,
    given: &Apply,
    now: SystemTime,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<(AwsSetup, Outcome)> {
    let (setup, mut desired, wanted) = place.desired(&given.desired).await?;
    let plan = setup.plan(&desired, now).await?;
    let mut steps = plan.steps.clone();
    if plan.has_changes() {
        if !given.yes {
            question::about(&plan, Some(&place_of(&setup)))?;
        }
        // somebody may add a device while this one is being asked
        if desired.others == Others::Remove {
            desired.others = Others::RemoveThese(plan.revokes.clone());
        }
        let (authorities, owner) = passphrases(&plan, given)?;
        desired::make_keys(&mut desired.devices, say)?;
        let secrets = Secrets {
            authorities: authorities.as_ref(),
            owner: owner.as_ref(),
        };
        let mut tell = |step: &Step| say(&outcome::line(step));
        steps = setup.apply(&desired, secrets, now, &mut tell).await?;
    }
    let checked = check(&setup, desired.function.as_ref(), now).await;
    let applied = Applied {
        plan: &plan,
        devices: &desired.devices,
        here: &wanted.here,
        steps: &steps,
        found: &checked,
    };
    let outcome = outcome::applied(setup.local(), &applied, None);
    Ok((setup, outcome))
}

/// Looks at everything, and sees whether what the devices publish whose keys are in
/// this machine gets where it belongs.
async fn check(setup: &AwsSetup, function: Option<&FunctionZip>, now: SystemTime) -> Vec<Checked> {
    let mut found = setup.check(function, now).await;
    let (Ok(store), Ok(dirs)) = (setup.store(), setup.local().device_dirs()) else {
        return found;
    };
    let clue = format!(
        "look into the queue {prefix}-dead-letters and the log group /aws/lambda/{prefix}-verifier, \
         and run `zk-setup status`",
        prefix = setup.prefix()
    );
    for dir in dirs {
        let test = SelfTest {
            dir: &dir,
            store: &store,
            // what was made just now isn't known everywhere at once
            settling: Duration::from_secs(30),
            clue: &clue,
        };
        found.extend(test.run().await);
    }
    found
}

async fn destroy(
    setup: &AwsSetup,
    given: &crate::arguments::Destroy,
    has_prefix: bool,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    let what = Destroy {
        data: given.with_data,
        keys: given.with_keys,
    };
    let plan = setup.plan_destroy(what).await?;
    // a directory's name that is mistyped must not take away the account's `zk`
    let is_in_account =
        |step: &Step| step.action == Action::Removed && matches!(step.item, Item::Resource { .. });
    ensure!(
        setup.is_remembered() || has_prefix || !plan.steps.iter().any(is_in_account),
        "{} doesn't say where in AWS its set-up is, and here is one, {}: if that is to go, name \
         its prefix, --prefix {}; else name the right directory with --dir",
        setup.local().dir().display(),
        place_of(setup),
        setup.prefix()
    );
    if !plan.has_changes() {
        let place = place_of(setup);
        return Ok(outcome::destroyed(setup.local(), &plan.steps, Some(&place)));
    }
    if !given.yes {
        question::about_destruction(setup.local(), &plan, Some(&place_of(setup)))?;
    }
    let mut tell = |step: &Step| say(&outcome::line(step));
    let steps = setup.destroy(what, &mut tell).await?;
    Ok(outcome::destroyed(
        setup.local(),
        &steps,
        Some(&place_of(setup)),
    ))
}

async fn init_authority(
    setup: &AwsSetup,
    source: &PassphraseSource,
    now: SystemTime,
) -> anyhow::Result<Outcome> {
    let new = !setup.local().dir().join("ca/device-ca.key.pem").exists();
    let passphrase = passphrase::get(source, new)?;
    let steps = setup.init_authority(&passphrase, now).await?;
    let next = "apply --device NAME --hsm URI";
    Ok(outcome::authorities(setup.local(), &steps, next))
}

async fn device(
    setup: &AwsSetup,
    command: &DeviceCommand,
    now: SystemTime,
) -> anyhow::Result<Outcome> {
    let local = setup.local();
    match command {
        DeviceCommand::Add(add) => {
            let device = wanted_device(add)?;
            let passphrase = passphrase::get(&add.passphrase, false)?;
            let added = setup.add_device(&device, &passphrase, now).await?;
            Ok(outcome::added(local, &added))
        }
        DeviceCommand::List => Ok(outcome::devices(&setup.devices().await?)),
        DeviceCommand::Rotate(rotate) => rotate_device(setup, rotate, now).await,
        DeviceCommand::Revoke { name } => {
            let revoked = setup.revoke_device(name, now).await?;
            let soon = "AWS IoT refuses its certificates from now on.";
            Ok(outcome::revoked(local, &revoked, soon))
        }
    }
}

async fn rotate_device(
    setup: &AwsSetup,
    rotate: &DeviceRotate,
    now: SystemTime,
) -> anyhow::Result<Outcome> {
    if rotate.finish {
        let finished = setup.finish_rotation(&rotate.name, now).await?;
        return Ok(outcome::rotated(setup.local(), &finished));
    }
    let request = desired::request(&rotate.name, rotate.csr.as_deref(), rotate.hsm.as_ref())?;
    let hsm = rotate.hsm.as_ref().map(ToString::to_string);
    let passphrase = passphrase::get(&rotate.passphrase, false)?;
    let next = setup
        .rotate_device(&request, hsm.as_deref(), &passphrase, now)
        .await?;
    Ok(outcome::rotating(setup.local(), &next))
}

/// The policy is for who has no right yet: where all is said, nobody is asked.
async fn policy(place: &Place<'_>, given: &Policy) -> anyhow::Result<Outcome> {
    let aws = &place.arguments.aws;
    let remembered = AwsPlace::of(&LocalSetup::new(&place.arguments.dir))?;
    let (known_region, known_prefix) = match remembered {
        Some(known) => (Some(known.region), Some(known.prefix)),
        None => (None, None),
    };
    let region = aws.region.clone().or_else(region_of_environment);
    let (account, region, prefix) = match (&given.account, region.or(known_region)) {
        (Some(account), Some(region)) => {
            let prefix = aws.prefix.clone().or(known_prefix);
            (
                account.clone(),
                region,
                prefix.unwrap_or_else(|| "zk".to_owned()),
            )
        }
        (Some(_), None) => bail!("no region: give --region or set AWS_REGION"),
        (None, _) => {
            let setup = place.connect(&AwsTable::default()).await?;
            let [account, region, prefix] =
                [setup.account(), setup.region(), setup.prefix()].map(str::to_owned);
            (account, region, prefix)
        }
    };
    let policy = zk_provision::operator_policy(&account, &region, &prefix)?;
    Ok(Outcome::policy(&policy))
}

/// The program for the function: where it was said to be, or beside this one, for
/// what the function that is there runs on, if nothing else is asked for. `None`: that
/// one stays, as there is no other.
async fn function(
    setup: &AwsSetup,
    given: &FunctionArguments,
    table: &AwsTable,
) -> anyhow::Result<Option<FunctionZip>> {
    let wanted = given.arch.or(table.arch);
    let named = given.lambda_zip.as_ref().or(table.lambda_zip.as_ref());
    let there = match named {
        Some(_) => None,
        None => setup.function_architecture().await?,
    };
    let arch = wanted.or(there).unwrap_or_default();
    let path = match named {
        Some(path) => path.clone(),
        None => beside_this(arch)?,
    };
    if !path.exists() {
        if there == Some(arch) {
            return Ok(None);
        }
        bail!(
            "there is no {}: build it with `cargo xtask lambda --arch {}`, or name it with \
             --lambda-zip",
            path.display(),
            arch.as_str()
        );
    }
    let function = FunctionZip::read(&path)?;
    let found = function.architecture();
    ensure!(
        wanted.is_none_or(|wanted| wanted == found),
        "{} is for {}, not {}: build it with `cargo xtask lambda --arch {}`",
        path.display(),
        found.as_str(),
        arch.as_str(),
        arch.as_str()
    );
    Ok(Some(function))
}

fn region_of_environment() -> Option<String> {
    ["AWS_REGION", "AWS_DEFAULT_REGION"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|region| !region.is_empty()))
}

fn beside_this(arch: Architecture) -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where zk-setup is")?;
    let name = format!("zk-verifier-lambda-{}.zip", arch.as_str());
    Ok(program.with_file_name(name))
}

/// Whoever believes to have asked AWS, and has not, shall see it.
fn warn_of_overrides(setup: &AwsSetup) {
    let mut by_url: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (service, url) in setup.overrides() {
        by_url.entry(url).or_default().push(*service);
    }
    for (url, services) in by_url {
        tracing::warn!("THIS IS NOT AWS: {} asked at {url}", services.join(", "));
    }
}

/// What a person is told of where it is.
fn place_of(setup: &AwsSetup) -> String {
    format!(
        "AWS account {}, {}, prefix {}",
        setup.account(),
        setup.region(),
        setup.prefix()
    )
}
