"""Labels by patterns and language models: the command (`command`), work in the background of the dashboard
(`background`), what pages print (`views`), and the routes (`routes`)."""
