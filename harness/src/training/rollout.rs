//! Steps that were taken, and how much better than expected each was.

/// What one step was.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Transition {
    pub features: Vec<f32>,
    pub mask: Vec<bool>,
    pub action: Vec<usize>,
    /// Of the action when it was taken.
    pub log_probability: f32,
    /// Expected then.
    pub value: f32,
    /// With what a cut-off future was worth.
    pub reward: f32,
    /// Whether the episode ended here.
    pub last: bool,
}

/// Advantage of every step by generalized advantage estimation (Schulman et al. 2016, equation 16):
/// A_t = δ_t + γλ·A_{t+1}, δ_t = r_t + γ·V_{t+1} − V_t; nothing comes after an episode's last step. `after` is the value of
/// what follows the last transition.
pub(crate) fn advantages(steps: &[Transition], after: f32, gamma: f32, lambda: f32) -> Vec<f32> {
    let mut advantages = vec![0.0; steps.len()];
    let (mut next_value, mut next_advantage) = (after, 0.0);
    for (step, advantage) in steps.iter().zip(&mut advantages).rev() {
        let goes_on = if step.last { 0.0 } else { 1.0 };
        let delta = step.reward + gamma * next_value * goes_on - step.value;
        *advantage = delta + gamma * lambda * goes_on * next_advantage;
        (next_value, next_advantage) = (step.value, *advantage);
    }
    advantages
}

/// How much of the returns' variance the values explain: 1 − Var(returns − values) / Var(returns); 0 without variance.
pub(crate) fn explained_variance(values: &[f32], returns: &[f32]) -> f64 {
    let variance = |xs: &[f64]| {
        let mean = xs.iter().sum::<f64>() / xs.len().max(1) as f64;
        xs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>()
    };
    let wide: Vec<f64> = returns.iter().map(|&r| f64::from(r)).collect();
    let rest: Vec<f64> = wide.iter().zip(values).map(|(r, &v)| r - f64::from(v)).collect();
    let all = variance(&wide);
    if all > 0.0 { 1.0 - variance(&rest) / all } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(reward: f32, value: f32, last: bool) -> Transition {
        Transition { reward, value, last, ..Transition::default() }
    }

    #[test]
    fn advantages_by_hand() {
        // γ = 0.5, λ = 0.5. Backwards: δ = 3 + 0.5·4 − 2 = 3; then an end: δ = 1 − 1 = 0;
        // then δ = 2 + 0.5·1 − 0.5 = 2, A = 2 + 0.25·0; then δ = 1 + 0.5·0.5 − 1 = 0.25, A = 0.25 + 0.25·2.
        let steps =
            [step(1.0, 1.0, false), step(2.0, 0.5, false), step(1.0, 1.0, true), step(3.0, 2.0, false)];
        assert_eq!(advantages(&steps, 4.0, 0.5, 0.5), [0.75, 2.0, 0.0, 3.0]);
        // λ = 0: the temporal difference alone; λ = γ = 1: the return minus the value.
        assert_eq!(advantages(&steps[..2], 1.0, 0.5, 0.0), [0.25, 2.0]);
        assert_eq!(advantages(&steps[..2], 1.0, 1.0, 1.0), [1.0 + 2.0 + 1.0 - 1.0, 2.0 + 1.0 - 0.5]);
        assert!(advantages(&[], 1.0, 0.9, 0.9).is_empty());
    }

    #[test]
    fn explained_variance_by_hand() {
        assert_eq!(explained_variance(&[1.0, 3.0], &[1.0, 3.0]), 1.0);
        assert_eq!(explained_variance(&[2.0, 2.0], &[1.0, 3.0]), 0.0);
        assert_eq!(explained_variance(&[3.0, 1.0], &[1.0, 3.0]), -3.0);
        assert_eq!(explained_variance(&[1.0, 2.0], &[5.0, 5.0]), 0.0);
    }
}
