//! The elementary functions against f64, over every fp32 number's neighbourhood.

use crate::call;
use densessm_kernels::{Function, Level};

/// Every so many of the 2^32 patterns of bits are tried; a prime, so that all mantissas and exponents have their turn.
const STRIDE: usize = 251;

/// Distance in units in the last place of the exact value, which is rounded to 0 below the smallest normal number.
fn distance(got: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    if nearest.is_infinite() || nearest.abs() < f32::MIN_POSITIVE {
        // A unit in the last place of the largest number, or the smallest normal one, is the grain there.
        let same = got == nearest || got.abs() <= f32::MIN_POSITIVE || (got.is_infinite() || got.abs() > 3.3e38);
        return if same { 0.0 } else { f64::INFINITY };
    }
    let unit = f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
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
    Level::all().for_each(|level| worst(Function::Exp, level, f64::exp, 2.0, |_| true));
}

#[test]
fn exp2_is_within_three_units_over_its_whole_range() {
    Level::all().for_each(|level| worst(Function::Exp2, level, f64::exp2, 3.0, |x| x < 128.0));
}

#[test]
fn softplus_is_within_five_units_over_its_whole_range() {
    Level::all().for_each(|level| worst(Function::Softplus, level, call::softplus, 5.0, |_| true));
}

#[test]
fn silu_is_within_five_units_where_the_exponential_is_finite() {
    Level::all().for_each(|level| worst(Function::Silu, level, call::silu, 5.0, |x| x > -88.0));
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
