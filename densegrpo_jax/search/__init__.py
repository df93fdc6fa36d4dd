"""Search at inference: a budget of network evaluations spent on making a prompt's image better.

Reading order: loop (a model, particles, and the calls that every method is made of; programs has
their arithmetic), passes (one way from noise to image with weights or candidates), methods, budget
(what it buys).
"""
