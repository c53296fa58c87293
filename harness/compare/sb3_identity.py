"""Stable-Baselines3 on the identity environments of wattle's learning tests, with the same settings.

python -m venv v && v/bin/pip install -r requirements.txt && v/bin/python sb3_identity.py

Prints the mean return (of 100) of 20 episodes after 3,000 asked-for steps, for seeds 0 to 4. Stable-Baselines3 takes whole
rollouts of 2048, so that it learns from 4,096 steps where wattle's test stops at 3,000; the second figure is with a rollout
of 1,500, which makes it stop at 3,000 too.
"""

import gymnasium
import numpy
import stable_baselines3
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy


class Identity(gymnasium.Env):
    """Shows a random value; the right action is to repeat it. An episode is cut after 100 steps."""

    def __init__(self, space):
        self.action_space = space
        self.observation_space = space
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
        self.steps = 0
        self.state = self.action_space.sample()
        return self.state, {}

    def step(self, action):
        reward = float(numpy.all(self.state == action))
        self.steps += 1
        self.state = self.action_space.sample()
        return self.state, reward, False, self.steps >= 100, {}


def mean_return(space, seed, rollout):
    batch = 64 if rollout % 64 == 0 else 60
    model = PPO("MlpPolicy", Identity(space), gamma=0.4, seed=seed, n_steps=rollout, batch_size=batch, device="cpu")
    model.learn(3000)
    return evaluate_policy(model, Identity(space), n_eval_episodes=20, warn=False)[0]


def main():
    spaces = {
        "one of 4": gymnasium.spaces.Discrete(4),
        "two of 4": gymnasium.spaces.MultiDiscrete([4, 4]),
        "4 bits": gymnasium.spaces.MultiBinary(4),
    }
    print(f"stable-baselines3 {stable_baselines3.__version__}, gymnasium {gymnasium.__version__}")
    for name, space in spaces.items():
        for rollout in (2048, 1500):
            returns = [mean_return(space, seed, rollout) for seed in range(5)]
            print(f"{name}, rollout {rollout}:", " ".join(f"{x:.1f}" for x in returns), flush=True)


if __name__ == "__main__":
    main()
