//! The elementary functions compared with f64, over the whole range of fp32.

use crate::call;
use densessm_kernels::{Function, Level};
use densessm_proto::tolerance::{EXP_ULP, EXP2_ULP, SILU_ULP, SOFTPLUS_ULP};

/// Step through the 2^32 bit patterns: a prime, so that all mantissas and exponents occur.
const STRIDE: usize = 251;

/// Distance in units in the last place of the exact value, or of the smallest normal number if that is larger.
fn distance(got: f32, exact: f64) -> f64 {
    let grain = f32::from_bits((exact as f32).abs().max(f32::MIN_POSITIVE).to_bits() + 1);
    let unit = f64::from(grain) - f64::from((exact as f32).abs().max(f32::MIN_POSITIVE));
    (f64::from(got) - exact).abs() / unit
}

/// Checks a function within its domain, to a bound in units in the last place.
fn worst(function: Function, level: Level, exact: impl Fn(f64) -> f64, bound: f64, domain: impl Fn(f32) -> bool) {
    let every = (0..=u32::MAX).step_by(STRIDE).map(f32::from_bits);
    let critical =
        [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 88.722_83, 88.722_84, -87.336_54, -103.97, 1e-45, 128.0];
    let numbers: Vec<f32> = critical.into_iter().chain(every).filter(|x| !x.is_nan() && domain(*x)).collect();
    let mut results = numbers.clone();
    function.apply(level, &mut results);
    for (x, got) in numbers.into_iter().zip(results) {
        let x = f64::from(x);
        let error = distance(got, exact(x));
        assert!(error <= bound, "{function:?}({x:e}) on {level}: expected {:e}, got {got:e}", exact(x));
    }
}

#[test]
fn exp_is_within_two_units_over_its_whole_range() {
    Level::all().for_each(|level| worst(Function::Exp, level, f64::exp, EXP_ULP, |x| x.abs() <= 87.0));
}

#[test]
fn exp2_is_within_three_units_over_its_whole_range() {
    Level::all().for_each(|level| worst(Function::Exp2, level, f64::exp2, EXP2_ULP, |x| (-126.0..=127.0).contains(&x)));
}

#[test]
fn softplus_is_within_five_units_over_its_whole_range() {
    Level::all()
        .for_each(|level| worst(Function::Softplus, level, call::softplus, SOFTPLUS_ULP, |x| x > -87.0 && x < 3e38));
}

#[test]
fn silu_is_within_five_units_where_the_exponential_is_finite() {
    Level::all().for_each(|level| worst(Function::Silu, level, call::silu, SILU_ULP, |x| x > -88.0 && x < 3e38));
}

#[test]
fn beyond_their_ranges_functions_stay_at_the_ends() {
    for level in Level::all() {
        for (function, ends) in [
            (Function::Exp, [(-1e30, 0.0, 2e-38), (f32::NEG_INFINITY, 0.0, 2e-38), (1e30, 1.65e38, 1e37)]),
            (Function::Exp2, [(-1e30, 0.0, 2e-38), (f32::NEG_INFINITY, 0.0, 2e-38), (127.0, 1.7e38, 1e37)]),
            (Function::Silu, [(-1e3, 0.0, 1e-34), (-90.0, 0.0, 1e-36), (f32::INFINITY, f32::INFINITY, 0.0)]),
            (Function::Softplus, [(-1e3, 0.0, 2e-38), (-88.0, 0.0, 2e-38), (f32::INFINITY, f32::INFINITY, 0.0)]),
        ] {
            for (x, expected, tolerance) in ends {
                let mut got = [x];
                function.apply(level, &mut got);
                let close = got[0] == expected || (got[0] - expected).abs() <= tolerance;
                assert!(close, "{function:?}({x:e}) on {level}: expected {expected:e}, got {:e}", got[0]);
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    for level in Level::all() {
        for function in [Function::Exp, Function::Silu, Function::Softplus] {
            let mut numbers = [1.0, f32::NAN, -1.0];
            function.apply(level, &mut numbers);
            assert!(numbers[0].is_finite() && numbers[1].is_nan() && numbers[2].is_finite(), "{function:?} on {level}");
        }
    }
}
