"""Parts that PPO and GRPO share: control of the KL from π_ref, signs of reward hacking, rollouts by vLLM."""
