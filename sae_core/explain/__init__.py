"""What a feature means, in words that are tested: labels, the texts they are tested on, who judges, and the scores.

records    what crosses these modules and goes to the store
sample     contexts with the activations of all features: where it is known what does not fire (with torch)
material   a feature's examples, cut into windows: some to explain it by, others to test with
patterns   labels that a program makes and judges by: n-grams with wildcards, and the index's automatic labels
scoring    trials, answers, and the score that they give
prompts    what a language model is told, and how its answers are read
client     the endpoint of a language model
bench      one index laid out for labelling; the scores of patterns
job        features in, labels and scores out, in the order asked, resumable
bases      a model's neurons and principal components as if they were an SAE, to compare with (with torch)
"""
