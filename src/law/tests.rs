//! The law as a whole: how it learns, what it forgets, what it refuses.

use super::*;

fn observation(model: &str, size: u32, steps: u32, images: u64, starts: bool) -> Features {
    let catalogue = Catalogue::built_in();
    let workload = Workload {
        width: size,
        height: size,
        steps,
        guidance_scale: 7.5,
        images,
        ..Workload::of(catalogue.get(model).unwrap())
    };
    let (_, mut features) = catalogue.job(&workload, 1, 1).unwrap();
    if !starts {
        features.starts = 0.0;
    }
    features
}

fn a100() -> Gpu {
    Gpu::parse("NVIDIA-A100-SXM4-40GB").unwrap()
}

fn law() -> Law {
    Law::prior(Form::default(), &a100())
}

/// A world of another form than the law's, 25 % above the prior, that starts at another cost.
fn truth(features: &Features) -> Joules {
    Joules(
        features.starts * 90.0
            + 1.25 * features.images * (5.2 * features.calls + 3.03 * features.flops.tera()),
    )
}

fn run(features: Features, factor: f64) -> Observation {
    Observation {
        energy: Joules(truth(&features).0 * factor),
        features,
        basis: Basis::Gross,
    }
}

fn mixed(n: usize) -> Features {
    let models = ["sd1.5", "sdxl", "sd2"];
    observation(
        models[n % 3],
        [512, 768, 640][(n / 2) % 3],
        15 + u32::try_from(n * 7 % 20).unwrap(),
        1 + (n as u64 % 4),
        true,
    )
}

/// A number in [-1, 1] that belongs to n.
fn luck(n: usize) -> f64 {
    let hash = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
    hash as f64 / (1_u64 << 52) as f64 - 1.0
}

fn taught(runs: usize) -> Law {
    let mut law = law();
    for n in 0..runs {
        law.learn(&run(mixed(n), 1.0 + 0.05 * luck(n)));
    }
    law
}

fn error_over(law: &Law, runs: std::ops::Range<usize>, factor: f64) -> f64 {
    let errors = runs.clone().map(mixed).map(|f| {
        let measured = truth(&f).0 * factor;
        (law.predict(&f).median.0 / measured - 1.0).abs()
    });
    errors.sum::<f64>() / runs.len() as f64
}

#[test]
fn fifteen_mixed_jobs_bring_a_law_that_is_25_percent_off_under_4_percent() {
    let mut law = law();
    for n in 0..15 {
        law.learn(&run(mixed(n), 1.0));
    }
    let error = error_over(&law, 15..30, 1.0);
    assert!(error < 0.04, "{error}");
}

#[test]
fn one_wrong_annotation_does_not_spoil_the_law() {
    let mut law = taught(30);
    let before = law.predict(&mixed(7)).median.0;
    let Outcome::Learnt(update) = law.learn(&run(mixed(7), 12.0)) else {
        unreachable!("a positive energy is learnt from")
    };
    assert!(update.outlier);
    assert!((law.predict(&mixed(7)).median.0 / before - 1.0).abs() < 0.05);
}

/// How far each of thirty predictions is moved by gross outliers among 400 runs.
fn moved_by(outlier: impl Fn(usize) -> f64) -> Vec<f64> {
    let (mut clean, mut dirty) = (law(), law());
    for n in 0..400 {
        let honest = run(mixed(n), 1.0 + 0.05 * luck(n));
        clean.learn(&honest);
        dirty.learn(&Observation {
            energy: Joules(honest.energy.0 * outlier(n)),
            ..honest
        });
    }
    assert_eq!(dirty.shifts, 0, "outliers are no shift");
    let moved = (400..430)
        .map(mixed)
        .map(|f| (dirty.predict(&f).median.0 / clean.predict(&f).median.0 - 1.0).abs());
    moved.collect()
}

#[test]
fn one_run_in_twenty_that_is_ten_times_off_moves_predictions_less_than_2_percent() {
    let moved = moved_by(|n| match n % 40 {
        19 => 10.0,
        39 => 0.1,
        _ => 1.0,
    });
    let mean = moved.iter().sum::<f64>() / 30.0;
    assert!(mean < 0.02, "{mean}");
}

#[test]
fn a_first_run_that_is_ten_times_off_does_not_make_the_law() {
    for (wrong, at) in [(10.0, 0), (0.1, 0), (10.0, 1), (10.0, 3)] {
        let (mut clean, mut dirty) = (law(), law());
        let mut worst = 0.0_f64;
        for n in 0..40 {
            let honest = run(mixed(n), 1.0 + 0.05 * luck(n));
            clean.learn(&honest);
            let factor = if n == at { wrong } else { 1.0 };
            dirty.learn(&Observation {
                energy: Joules(honest.energy.0 * factor),
                ..honest
            });
            let next = mixed(n + 1);
            let moved = dirty.predict(&next).median.0 / clean.predict(&next).median.0 - 1.0;
            worst = worst.max(moved.abs());
            // About as much as one run fewer does.
            if n >= 20 {
                assert!(moved.abs() < 0.05, "{wrong} at {at}, after {n}: {moved}");
            }
        }
        assert!(worst < 0.3, "{wrong} at {at}: {worst}");
    }
}

#[test]
fn a_world_five_times_off_is_believed_from_the_second_run_on() {
    let mut law = law();
    for _ in 0..3 {
        law.learn(&run(mixed(0), 5.0));
    }
    let off = law.predict(&mixed(0)).median.0 / run(mixed(0), 5.0).energy.0 - 1.0;
    assert!(off.abs() < 0.15, "{off}");
}

#[test]
fn outliers_all_to_one_side_move_no_prediction_by_2_percent_either() {
    let moved = moved_by(|n| if n % 20 == 19 { 10.0 } else { 1.0 });
    let most = moved.into_iter().fold(0.0, f64::max);
    assert!(most < 0.02, "{most}");
}

#[test]
fn a_world_20_percent_lower_is_noticed_within_10_runs_and_followed_within_50() {
    let mut law = taught(100);
    let noticed = (100..150).position(|n| {
        let outcome = law.learn(&run(mixed(n), 0.8 * (1.0 + 0.05 * luck(n))));
        matches!(outcome, Outcome::Learnt(Update { reset: true, .. }))
    });
    let noticed = noticed.unwrap();
    assert!(noticed < 10, "noticed after {noticed} runs");
    for n in 100 + noticed..150 {
        law.learn(&run(mixed(n), 0.8 * (1.0 + 0.05 * luck(n))));
    }
    let error = error_over(&law, 150..170, 0.8);
    assert!(error < 0.08, "{error}");
    assert!(
        law.recent_error().unwrap() < 0.05,
        "{:?}",
        law.recent_error()
    );
}

#[test]
fn one_configuration_a_hundred_thousand_times_blows_nothing_up() {
    let mut law = law();
    let one = observation("sdxl", 1024, 25, 10, true);
    for n in 0..100_000 {
        law.learn(&run(one.clone(), 1.0 + 0.02 * luck(n)));
    }
    let other = observation("sd1.5", 512, 20, 1, true);
    let prediction = law.predict(&other);
    assert!(prediction.ln_sd < 0.6, "{prediction:?}");
    let off = (prediction.median.0 / truth(&other).0).ln();
    assert!(off.abs() < 0.5, "{prediction:?}");
    assert!(prediction.covers(truth(&other), 0.99), "{prediction:?}");
}

#[test]
fn the_state_is_bounded_at_4_kib_however_many_models_come() {
    let mut law = law();
    for n in 0..200 {
        let mut features = mixed(n);
        features.model = format!("a-company/with-a-long-name/fine-tune-number-{n}-of-many");
        features.architecture = format!("Architecture{n}");
        law.learn(&run(features, 1.0));
        assert!(law.save().len() <= 4096, "{}", law.save().len());
    }
    // Nor after as many runs as a large cluster has in a century.
    law.observations = 10_000_000_000;
    (law.shifts, law.shifted_at) = (1_000_000, 9_999_999_999);
    // Those that every law has are not counted.
    let levels = law.parameters.iter_mut().filter(|p| p.name.contains('/'));
    for parameter in levels {
        (parameter.seen, parameter.runs) = (9_999_999_999, 9_999_999_999);
    }
    assert!(law.save().len() <= 4096, "{}", law.save().len());
}

#[test]
fn the_same_observations_give_the_same_bits_whatever_the_restarts() {
    let (mut whole, mut restarted) = (law(), law());
    for n in 0..60 {
        let run = run(mixed(n), 1.0 + 0.1 * luck(n));
        whole.learn(&run);
        restarted.learn(&run);
        if n % 3 == 0 {
            restarted = Law::load(&restarted.save()).unwrap();
        }
        assert_eq!(restarted, whole, "after {n} runs");
        assert_eq!(restarted.save(), whole.save());
    }
}

#[test]
fn a_law_from_another_version_is_refused_by_its_number() {
    let saved = taught(5)
        .save()
        .replacen("\"version\":2", "\"version\":7", 1);
    let error = Law::load(&saved).unwrap_err().to_string();
    assert!(error.contains('7'), "{error}");
}

#[test]
fn energies_that_cannot_be_are_refused_and_change_nothing() {
    let mut law = law();
    for energy in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.3, 1e12] {
        let run = Observation {
            energy: Joules(energy),
            ..run(mixed(1), 1.0)
        };
        assert!(matches!(law.learn(&run), Outcome::Refused(_)), "{energy}");
    }
    assert_eq!(law, self::law());
}

#[test]
fn gross_and_net_of_idle_are_never_mixed() {
    let net = Observation {
        basis: Basis::Net,
        ..run(mixed(1), 1.0)
    };
    let mut law = taught(3);
    assert!(matches!(law.learn(&net), Outcome::Refused(_)));
    let both = [run(mixed(0), 1.0), net];
    let error = fit(Form::default(), &a100(), &both).unwrap_err();
    assert_eq!(error, FitError::Mixed { gross: 1, net: 1 });
}

#[test]
fn two_runs_or_a_hundred_alike_are_fitted_as_far_as_they_go() {
    let two = [run(mixed(0), 1.0), run(mixed(1), 1.0)];
    let alike: Vec<Observation> = (0..100).map(|_| run(mixed(4), 1.0)).collect();
    for runs in [&two[..], &alike[..]] {
        let law = fit(Form::default(), &a100(), runs).unwrap();
        let error = score(&law, runs).mape;
        assert!(error < 0.1, "{error}");
        let far = law.predict(&observation("flux.1-dev", 1024, 28, 1, true));
        assert!(far.ln_sd.is_finite() && far.ln_sd > 0.05);
    }
}

#[test]
fn an_unknown_model_is_less_certain_than_one_with_runs_of_its_own() {
    let mut law = law();
    for n in 0..30 {
        let features = observation("sdxl", 512 + 64 * (n % 5), 20, 2, true);
        law.learn(&run(features, 1.0));
    }
    let seen = law.predict(&observation("sdxl", 640, 25, 2, true));
    let unseen = law.predict(&observation("kandinsky-3", 640, 25, 2, true));
    assert!(seen.relative_90() < unseen.relative_90());
}

#[test]
fn one_own_run_helps_at_once() {
    let mut law = taught(60);
    let heavy = |steps| observation("hunyuandit-1.2", 1024, steps, 4, true);
    let off = |law: &Law| (law.predict(&heavy(30)).median.0 / (truth(&heavy(30)).0 * 1.4)).ln();
    let before = off(&law).abs();
    law.learn(&run(heavy(20), 1.4));
    let after = off(&law).abs();
    assert!(after < before * 0.6, "{before} {after}");
}

#[test]
fn outside_of_what_was_seen_a_prediction_is_wider_and_says_where() {
    let law = taught(60);
    let within = law.predict(&observation("sdxl", 640, 25, 2, true));
    let without = law.predict(&observation("sdxl", 2048, 25, 2, true));
    assert_eq!(within.outside.names().count(), 0);
    assert!(without.outside.names().any(|name| name == "size"));
    assert!(without.relative_90() > within.relative_90());
}

#[test]
fn a_product_never_run_inherits_from_one_that_was() {
    let law = taught(60);
    let h100 = Gpu::parse("NVIDIA-H100-80GB-HBM3").unwrap();
    let inherited = Law::for_product(Form::default(), &h100, [&law]);
    assert_eq!(inherited.gpu, h100);
    assert_eq!(inherited.observations, 0);
    let job = observation("sdxl", 1024, 25, 2, true);
    let (own, other) = (law.predict(&job), inherited.predict(&job));
    assert!(other.relative_90() > own.relative_90());
    // An H100 does the same work with less, by its data sheet.
    assert!((0.5..1.0).contains(&(other.median.0 / own.median.0)));
    // A law that knows nothing hands nothing on.
    let blank = self::law();
    let alone = Law::for_product(Form::default(), &h100, [&blank]);
    assert_eq!(alone, Law::prior(Form::default(), &h100));
}

#[test]
fn start_up_is_learnt_apart_from_images() {
    let mut law = law();
    for n in 0..120 {
        let features = observation("sdxl", 512, 20, [1, 2, 40][n % 3], true);
        law.learn(&run(features, 1.0 + 0.02 * luck(n)));
    }
    let start = law.parameter("start").unwrap();
    assert!((start / 90.0).ln().abs() < 0.35, "{start} J");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_measured_predictions_stay_finite_and_positive(
        energies in proptest::collection::vec(1e-3_f64..1e9, 1..60),
    ) {
        for form in Form::ALL {
            let mut law = Law::prior(form, &a100());
            for (n, energy) in energies.iter().enumerate() {
                law.learn(&Observation {
                    features: mixed(n),
                    energy: Joules(*energy),
                    basis: Basis::Gross,
                });
                let prediction = law.predict(&mixed(n + 1));
                proptest::prop_assert!(prediction.median.0.is_finite() && prediction.median.0 > 0.0);
                proptest::prop_assert!(prediction.ln_sd.is_finite() && prediction.ln_sd > 0.0);
            }
        }
    }

    #[test]
    fn a_state_that_is_not_ours_is_refused_not_believed(text in "\\PC{0,120}") {
        proptest::prop_assert!(Law::load(&text).is_err());
    }

    #[test]
    fn a_state_with_a_character_changed_never_panics(at in 0_usize..2000, with in proptest::char::any()) {
        let mut saved: Vec<char> = taught(4).save().chars().collect();
        let at = at % saved.len();
        saved[at] = with;
        if let Ok(law) = Law::load(&saved.into_iter().collect::<String>()) {
            let _ = law.predict(&mixed(3));
        }
    }
}

fn on(stack: Stack, factor: f64, n: usize) -> Observation {
    let mut run = run(mixed(n), factor);
    run.features.stack = stack;
    run
}

#[test]
fn a_compiled_stack_has_a_level_of_its_own_and_leaves_the_others_alone() {
    let compiled = Stack {
        software: Some("compile".to_owned()),
        ..Stack::default()
    };
    let mut law = law();
    for n in 0..60 {
        law.learn(&on(Stack::default(), 1.0, n));
        law.learn(&on(compiled.clone(), 0.7, n));
    }
    let ratio = |stack: Stack| {
        let run = on(stack, 1.0, 3);
        law.predict(&run.features).median.0 / run.energy.0
    };
    assert!((ratio(compiled) / 0.7 - 1.0).abs() < 0.06);
    assert!((ratio(Stack::default()) - 1.0).abs() < 0.06);
    assert_eq!(law.shifts, 0, "two stacks are no world that moves");
}

#[test]
fn a_power_limit_is_learnt_as_an_exponent_and_is_usual_where_nothing_is_told() {
    let limited = |power: f64| Stack {
        power: Some(power),
        ..Stack::default()
    };
    let mut law = law();
    for n in 0..60 {
        for power in [1.0, 0.8, 0.6_f64] {
            law.learn(&on(limited(power), power.powf(0.45), n));
        }
    }
    let ratio = |law: &Law, stack: Stack| {
        let run = on(stack, 1.0, 3);
        law.predict(&run.features).median.0 / run.energy.0
    };
    let unseen = ratio(&law, limited(0.7));
    assert!((unseen / 0.7_f64.powf(0.45) - 1.0).abs() < 0.06, "{unseen}");
    for n in 0..20 {
        law.learn(&on(limited(0.6), 0.6_f64.powf(0.45), n));
    }
    let usual = ratio(&law, Stack::default());
    assert!((usual / 0.6_f64.powf(0.45) - 1.0).abs() < 0.06, "{usual}");
    let restarted = Law::load(&law.save()).unwrap();
    assert_eq!(restarted, law);
}

#[test]
fn a_new_driver_is_told_from_the_old_and_the_newest_is_what_is_expected() {
    let driver = |version: &str| Stack {
        driver: Some(driver_branch(version)),
        ..Stack::default()
    };
    assert_eq!(driver_branch("550.54.15"), "550");
    let mut law = law();
    for n in 0..60 {
        law.learn(&on(driver("550.54.15"), 1.0, n));
    }
    for n in 0..60 {
        law.learn(&on(driver("580.1"), 0.93, n));
    }
    let ratio = |stack: Stack| {
        let run = on(stack, 1.0, 3);
        law.predict(&run.features).median.0 / run.energy.0
    };
    let (old, new, untold) = (
        ratio(driver("550")),
        ratio(driver("580")),
        ratio(Stack::default()),
    );
    assert!((old / new - 1.0 / 0.93).abs() < 0.03, "{old} beside {new}");
    assert!((untold - new).abs() < 1e-9, "{untold} beside {new}");
}

#[test]
fn names_of_stacks_without_end_do_not_crowd_the_models_out() {
    let mut law = law();
    for n in 0..6 {
        law.learn(&on(Stack::default(), 1.0, n));
    }
    let models = law.models();
    for n in 0..100 {
        let stack = Stack {
            software: Some(format!("pipeline-{n:040x}")),
            driver: Some(n.to_string()),
            power: Some(0.7),
        };
        law.learn(&on(stack, 1.0, 0));
    }
    assert_eq!(law.models(), models);
    assert!(law.save().len() <= 4096, "{}", law.save().len());
}

#[test]
fn an_absurd_power_limit_leaves_the_law_usable() {
    for power in [0.0, 1e-9, 9e12, f64::INFINITY] {
        let mut law = law();
        let stack = Stack {
            power: Some(power),
            ..Stack::default()
        };
        for n in 0..20 {
            law.learn(&on(stack.clone(), 1.0, n));
        }
        let saved = Law::load(&law.save()).unwrap();
        let predicted = saved.predict(&mixed(3)).median.0;
        assert!(
            predicted.is_finite() && predicted > 0.0,
            "{power}: {predicted}"
        );
    }
}

#[test]
fn a_table_of_limited_boards_is_fitted_for_limited_boards() {
    let limited = Stack {
        power: Some(0.6),
        ..Stack::default()
    };
    let runs: Vec<Observation> = (0..40).map(|n| on(limited.clone(), 0.8, n)).collect();
    let fitted = fit(Form::default(), &a100(), &runs).unwrap();
    let right = |law: &Law| {
        let untold = law.predict(&mixed(3)).median.0;
        (untold / on(limited.clone(), 0.8, 3).energy.0 - 1.0).abs() < 0.06
    };
    assert!(right(&fitted));
    // Runs that do not tell are of boards as they were.
    let untold: Vec<Observation> = (0..40).map(|n| run(mixed(n), 0.8)).collect();
    assert!(right(&fit_from(fitted, &untold).unwrap()));
}

#[test]
fn a_law_is_not_fitted_on_with_runs_on_another_basis() {
    let gross: Vec<Observation> = (0..5).map(|n| run(mixed(n), 1.0)).collect();
    let net: Vec<Observation> = gross
        .iter()
        .map(|run| Observation {
            basis: Basis::Net,
            ..run.clone()
        })
        .collect();
    let law = fit(Form::default(), &a100(), &gross).unwrap();
    assert_eq!(law.basis(), Some(Basis::Gross));
    let error = fit_from(law, &net).unwrap_err();
    assert!(error.to_string().contains("net of idle"), "{error}");
}

#[test]
fn one_run_of_one_model_says_nothing_of_another_product() {
    let mut one = Law::prior(Form::default(), &Gpu::parse("NVIDIA-L4").unwrap());
    one.learn(&run(mixed(0), 2.0));
    let h100 = Gpu::parse("NVIDIA-H100-80GB-HBM3").unwrap();
    let law = Law::for_product(Form::default(), &h100, [&one]);
    assert_eq!(law, Law::prior(Form::default(), &h100));
}

#[test]
fn a_saved_law_of_the_papers_form_without_batches_goes_on_with_what_it_has_learnt() {
    let gpu = Gpu::parse("NVIDIA L40S").unwrap();
    let mut law = Law::prior(Form::Paper, &gpu);
    for n in 0..20 {
        law.learn(&run(mixed(n), 1.0));
    }
    let features = mixed(3);
    let before = law.predict(&features).median.0;
    for name in ["batch", "gpus", "gpus-batch"] {
        let index = law.index(name).unwrap();
        law.parameters.remove(index);
        law.covariance.shrink(index);
    }
    let again = Law::load(&law.save()).unwrap();
    assert_eq!(again.observations, 20);
    assert!(again.index("gpus-batch").is_some());
    let after = again.predict(&features).median.0;
    assert!((after / before - 1.0).abs() < 0.1, "{before} then {after}");
    let index = law.index("alpha").unwrap();
    law.parameters.remove(index);
    law.covariance.shrink(index);
    assert!(
        Law::load(&law.save()).is_err(),
        "what it always had is missing"
    );
}
