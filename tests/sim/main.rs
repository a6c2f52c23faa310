//! Whole clusters in one thread, broken by seed: same seed, same run, to the last byte.
//!
//! `cargo test --test sim` runs a few seeds; `scripts/sim` runs many, through the same test and what it reads from the
//! environment. Guarantees and limits stand in docs/testing.md.

mod clients;
mod faults;
mod invariants;
mod machine;
mod plan;
mod processes;
mod repair;
mod shrink;
mod store;
mod trace;
mod wire;
mod world;

use std::collections::BTreeMap;

use plan::{Fault, Plan};
use world::{Failure, Options, Planted, Report, run};

/// Seeds and steps where nobody asks for others: a share that `cargo test` has the time for.
const SEEDS: u64 = 40;
const STEPS: u64 = 10_000;

/// What `scripts/sim` asks for.
struct Asked {
    from: u64,
    seeds: u64,
    steps: u64,
    only: Option<Vec<usize>>,
    loud: bool,
    shrink: bool,
}

impl Asked {
    /// Reads variables of the environment.
    ///
    /// # Errors
    /// Which one can't be what it is.
    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str, default: u64| match variable(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| format!("{name} must be a whole number, not \"{text}\"")),
        };
        let only = match variable("QUORATE_SIM_ONLY") {
            None => None,
            Some(text) if text.is_empty() => Some(Vec::new()),
            Some(text) => {
                let numbers: Result<_, _> = text.split(',').map(str::parse).collect();
                Some(numbers.map_err(|_| format!("QUORATE_SIM_ONLY must be numbers with commas, not \"{text}\""))?)
            }
        };
        let (from, seeds) = (number("QUORATE_SIM_FROM", 0)?, number("QUORATE_SIM_SEEDS", SEEDS)?);
        let steps = number("QUORATE_SIM_STEPS", STEPS)?;
        if seeds == 0 || steps == 0 {
            return Err("seeds and steps must be 1 at least".into());
        }
        if from.checked_add(seeds).is_none() {
            return Err(format!("seeds {from} and {seeds} more are over the largest number"));
        }
        let (loud, shrink) = (number("QUORATE_SIM_LOUD", 0)? > 0, number("QUORATE_SIM_SHRINK", 1)? > 0);
        Ok(Self { from, seeds, steps, only, loud, shrink })
    }

    /// What is run of a seed.
    fn plan(&self, seed: u64) -> Plan {
        let plan = Plan::draw(seed, self.steps);
        let count = plan.actions.len();
        if let Some(none) = self.only.iter().flatten().find(|number| **number >= count) {
            panic!("seed {seed} has {count} actions in {} steps, numbered from 0: there is no {none}", self.steps);
        }
        self.only.as_ref().map_or_else(|| plan.clone(), |kept| plan.only(kept))
    }
}

fn command(seed: u64, steps: u64, only: Option<&[usize]>) -> String {
    let only = only.map_or_else(String::new, |kept| {
        let numbers: Vec<_> = kept.iter().map(usize::to_string).collect();
        format!(" --only '{}'", numbers.join(","))
    });
    format!("scripts/sim --from {seed} --seeds 1 --steps {steps}{only}")
}

/// Tells of a failure, and of the smallest that was found.
fn tell(plan: &Plan, failure: Failure, shrinks: bool) {
    let Failure { violation, step, lines } = &failure;
    println!("FAILED seed {} at step {step}: {violation}", plan.seed);
    println!("  repeat it with: {}", command(plan.seed, plan.steps, None));
    lines.iter().rev().take(25).rev().for_each(|line| println!("    {line}"));
    if !shrinks {
        return;
    }
    let small = shrink::shrink(plan, failure, Options::default());
    println!("  smaller, at step {}: {}", small.failure.step, small.failure.violation);
    println!("  repeat it with: {}", command(plan.seed, small.steps, Some(&small.kept)));
    small.failure.lines.iter().rev().take(25).rev().for_each(|line| println!("    {line}"));
}

fn passes(seed: u64, steps: u64) -> Report {
    let plan = Plan::draw(seed, steps);
    match run(&plan, Options::default()) {
        Ok(report) => report,
        Err(failure) => {
            tell(&plan, *failure, false);
            panic!("seed {seed} fails");
        }
    }
}

/// A member is taken out, and its disk emptied, while the machine sleeps that a client asked to write to: what was on that disk
/// when the write was committed counts for the answer that comes then.
#[test]
fn an_answer_that_comes_once_one_of_its_disks_is_out_and_emptied_is_no_violation() {
    let report = passes(40301, 50_000).to_string();
    assert!(!report.contains(" 0 memberships"), "nobody was taken out: {report}");
}

#[test]
fn the_invariants_hold_in_every_seed() {
    let asked = Asked::read(|name| std::env::var(name).ok()).unwrap_or_else(|wrong| panic!("{wrong}"));
    if asked.loud
        && let Ok(filter) = std::env::var("QUORATE_SIM_LOG")
    {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .with_ansi(false)
            .with_writer(std::io::stdout)
            .init();
    }
    let mut failed = Vec::new();
    for seed in asked.from..asked.from + asked.seeds {
        let plan = asked.plan(seed);
        println!("{plan}");
        let began = std::time::Instant::now();
        match run(&plan, Options { loud: asked.loud, planted: None }) {
            Ok(report) => println!("  passed in {:.1?}: {report}", began.elapsed()),
            Err(failure) => {
                tell(&plan, *failure, asked.shrink && asked.only.is_none());
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "{} of {} seeds failed: {failed:?}", failed.len(), asked.seeds);
}

#[test]
fn a_seed_runs_the_same_twice() {
    for seed in 0..6 {
        let (one, other) = (passes(seed, 5_000), passes(seed, 5_000));
        assert_eq!(one.to_string(), other.to_string(), "seed {seed}");
    }
    assert_ne!(passes(0, 2_000).trace, passes(1, 2_000).trace);
}

/// The invariant by which a planted bug is found, looking at as many seeds as it takes.
fn found(planted: Planted, seeds: u64) -> &'static str {
    for seed in 0..seeds {
        if let Err(failure) = run(&Plan::draw(seed, 8_000), Options { loud: false, planted: Some(planted) }) {
            println!("{planted:?} found by seed {seed} at step {}: {}", failure.step, failure.violation);
            return failure.violation.of;
        }
    }
    panic!("{planted:?} is not found in {seeds} seeds");
}

#[test]
fn a_planted_stale_read_is_found() {
    assert_eq!(found(Planted::StaleRead, 10), "no stale read");
}

#[test]
fn a_planted_double_apply_is_found() {
    assert_eq!(found(Planted::DoubleApply, 10), "no write applied twice");
}

#[test]
fn a_planted_lost_vote_is_found() {
    assert_eq!(found(Planted::LostVote, 10), "a vote is on disk before it counts");
}

#[test]
fn a_planted_lost_object_is_found() {
    assert_eq!(found(Planted::LostObject, 20), "the archive is the log");
}

#[test]
fn a_planted_lost_write_is_found() {
    assert_eq!(found(Planted::LostWrite, 10), "on the disks of a majority");
}

/// What scripts/sim makes of the flags of a command that was printed.
fn asked_by(command: &str) -> Asked {
    let words: Vec<&str> = command.split_whitespace().collect();
    assert_eq!(words[0], "scripts/sim");
    let variables: BTreeMap<String, String> = words[1..]
        .chunks(2)
        .map(|flag| {
            let name = flag[0].trim_start_matches("--").to_uppercase();
            (format!("QUORATE_SIM_{name}"), flag[1].trim_matches('\'').to_owned())
        })
        .collect();
    Asked::read(|name| variables.get(name).cloned()).unwrap_or_else(|wrong| panic!("{wrong}"))
}

#[test]
fn a_failing_seed_shrinks_to_the_faults_it_takes_and_the_command_repeats_it() {
    let options = Options { loud: false, planted: Some(Planted::StaleReadBehindJump) };
    let is_jump = |fault: &Fault| matches!(fault, Fault::Clock { .. });
    let many = |plan: &Plan| plan.actions.len() >= 8 && plan.actions.iter().any(|action| is_jump(&action.fault));
    let plans = (0..200).map(|seed| Plan::draw(seed, 6_000)).filter(many);
    let (plan, failure) = plans
        .filter_map(|plan| run(&plan, options).err().map(|failure| (plan, failure)))
        .next()
        .expect("a seed in which a clock jumps fails");
    let violation = failure.violation.of;
    let small = shrink::shrink(&plan, *failure, options);
    let kept: Vec<&Fault> = small.kept.iter().map(|number| &plan.actions[*number].fault).collect();
    println!(
        "seed {}: of {} actions in {} steps {kept:?} in {}",
        plan.seed,
        plan.actions.len(),
        plan.steps,
        small.steps
    );
    assert!(kept.iter().any(|fault| is_jump(fault)), "without one there is no failure: {kept:?}");
    assert!(small.kept.len() < plan.actions.len() && small.steps < plan.steps, "{kept:?} in {}", small.steps);
    let asked = asked_by(&command(plan.seed, small.steps, Some(&small.kept)));
    assert_eq!((asked.from, asked.seeds, asked.steps), (plan.seed, 1, small.steps));
    let again = run(&asked.plan(plan.seed), options).expect_err("it fails again");
    assert_eq!((again.violation.of, again.step), (violation, small.failure.step));
    assert_eq!(again.violation, small.failure.violation);
}
