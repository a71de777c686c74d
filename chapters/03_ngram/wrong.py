"""Wrong answers of chapter 03: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("3.1", "the formula everywhere: divides by 0 where a count is missing")
def good_turing_counts(n_with):
    r = np.arange(len(n_with) - 1)
    return (r + 1) * n_with[1:] / np.where(n_with[:-1] == 0, 1, n_with[:-1])


@wrong("3.1", "r instead of r + 1")
def good_turing_counts(n_with):
    r = np.arange(len(n_with) - 1)
    here, above = n_with[:-1], n_with[1:]
    estimate = r * above / np.maximum(here, 1)
    return np.where((r > 0) & (here > 0) & (above > 0) & (estimate < r), estimate, r)


@wrong("3.1", "raises counts where the next number is larger")
def good_turing_counts(n_with):
    r = np.arange(len(n_with) - 1)
    here, above = n_with[:-1], n_with[1:]
    estimate = (r + 1) * above / np.maximum(here, 1)
    return np.where((r > 0) & (here > 0) & (above > 0), estimate, r)


@wrong("3.1", "an n_{r+1} of 0 makes the count 0")
def good_turing_counts(n_with):
    r = np.arange(len(n_with) - 1)
    here, above = n_with[:-1], n_with[1:]
    estimate = (r + 1) * above / np.maximum(here, 1)
    return np.where((r > 0) & (here > 0) & (estimate < r), estimate, r)


@wrong("3.1", "the unseen get the estimate n1 / n0 as well")
def good_turing_counts(n_with):
    r = np.arange(len(n_with) - 1)
    here, above = n_with[:-1], n_with[1:]
    estimate = (r + 1) * above / np.maximum(here, 1)
    return np.where((here > 0) & (above > 0) & ((estimate < r) | (r == 0)), estimate, r)


@wrong("3.1", "whole numbers: the quotient is rounded down")
def good_turing_counts(n_with):
    r = np.arange(len(n_with) - 1)
    here, above = n_with[:-1], n_with[1:]
    estimate = (r + 1) * above // np.maximum(here, 1)
    return np.where((r > 0) & (here > 0) & (above > 0) & (estimate < r), estimate, r).astype(float)


@wrong("3.2", "a plain mixture: the weights do not hang on one another")
def em_step(weights, probabilities, known):
    joint = np.concatenate([np.full((len(known), 1), 1 - weights.sum()), known * weights], axis=1) * probabilities
    shares = joint / joint.sum(axis=1, keepdims=True)
    return shares[:, 1:].mean(axis=0)


@wrong("3.2", "divides by all ids instead of by the times the level was asked")
def em_step(weights, probabilities, known):
    answers = np.where(known, weights, 0.0)
    passed_on = np.cumprod((1 - answers)[:, ::-1], axis=1)[:, ::-1]
    asked = np.concatenate([passed_on, np.ones((len(known), 1))], axis=1)
    joint = asked * np.concatenate([np.ones((len(known), 1)), answers], axis=1) * probabilities
    shares = joint / joint.sum(axis=1, keepdims=True)
    return shares[:, 1:].mean(axis=0)


@wrong("3.2", "what a level was asked is counted also where it does not know the context")
def em_step(weights, probabilities, known):
    answers = np.where(known, weights, 0.0)
    passed_on = np.cumprod((1 - answers)[:, ::-1], axis=1)[:, ::-1]
    asked = np.concatenate([passed_on, np.ones((len(known), 1))], axis=1)
    joint = asked * np.concatenate([np.ones((len(known), 1)), answers], axis=1) * probabilities
    shares = joint / joint.sum(axis=1, keepdims=True)
    reached = np.cumsum(shares, axis=1)[:, 1:]
    times = reached.sum(axis=0)
    return np.where(known.any(axis=0), (shares[:, 1:] * known).sum(axis=0) / times, weights)


@wrong("3.2", "a level that does not know the context swallows its weight")
def em_step(weights, probabilities, known):
    answers = np.broadcast_to(weights, known.shape)
    passed_on = np.cumprod((1 - answers)[:, ::-1], axis=1)[:, ::-1]
    asked = np.concatenate([passed_on, np.ones((len(known), 1))], axis=1)
    joint = asked * np.concatenate([np.ones((len(known), 1)), answers * known], axis=1) * probabilities
    shares = joint / joint.sum(axis=1, keepdims=True)
    reached = np.cumsum(shares, axis=1)[:, 1:]
    answered, times = (shares[:, 1:] * known).sum(axis=0), (reached * known).sum(axis=0)
    return np.where(times > 0, answered / np.where(times > 0, times, 1.0), weights)


@wrong("3.2", "the shortest context is asked first")
def em_step(weights, probabilities, known):
    answers = np.where(known, weights, 0.0)
    passed_on = np.cumprod(1 - answers, axis=1)
    asked = np.concatenate([passed_on[:, -1:], np.ones((len(known), 1)), passed_on[:, :-1]], axis=1)
    joint = asked * np.concatenate([np.ones((len(known), 1)), answers], axis=1) * probabilities
    shares = joint / joint.sum(axis=1, keepdims=True)
    reached = shares[:, :1] + np.cumsum(shares[:, :0:-1], axis=1)[:, ::-1]
    answered, times = (shares[:, 1:] * known).sum(axis=0), (reached * known).sum(axis=0)
    return np.where(times > 0, answered / np.where(times > 0, times, 1.0), weights)


@wrong("3.2", "weights without the probabilities: nobody looks at the text")
def em_step(weights, probabilities, known):
    answers = np.where(known, weights, 0.0)
    passed_on = np.cumprod((1 - answers)[:, ::-1], axis=1)[:, ::-1]
    asked = np.concatenate([passed_on, np.ones((len(known), 1))], axis=1)
    shares = asked * np.concatenate([np.ones((len(known), 1)), answers], axis=1)
    reached = np.cumsum(shares, axis=1)[:, 1:]
    answered, times = (shares[:, 1:] * known).sum(axis=0), (reached * known).sum(axis=0)
    return np.where(times > 0, answered / np.where(times > 0, times, 1.0), weights)


@wrong("3.2", "a level that was never asked gets weight 0")
def em_step(weights, probabilities, known):
    answers = np.where(known, weights, 0.0)
    passed_on = np.cumprod((1 - answers)[:, ::-1], axis=1)[:, ::-1]
    asked = np.concatenate([passed_on, np.ones((len(known), 1))], axis=1)
    joint = asked * np.concatenate([np.ones((len(known), 1)), answers], axis=1) * probabilities
    shares = joint / joint.sum(axis=1, keepdims=True)
    reached = np.cumsum(shares, axis=1)[:, 1:]
    answered, times = (shares[:, 1:] * known).sum(axis=0), (reached * known).sum(axis=0)
    return answered / np.where(times > 0, times, 1.0)


@wrong("3.3", "counts n-grams of count 0 among the different ones")
def witten_bell_shares(counts, contexts, n_contexts):
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    n_different = np.bincount(contexts, minlength=n_contexts)
    divisors = np.maximum(totals + n_different, 1)
    return counts / divisors[contexts], np.where(totals > 0, n_different / divisors, 1.0)


@wrong("3.3", "divides by the total alone: shares and weight sum to more than 1")
def witten_bell_shares(counts, contexts, n_contexts):
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    n_different = np.bincount(contexts, weights=counts > 0, minlength=n_contexts)
    divisors = np.maximum(totals, 1)
    return counts / divisors[contexts], np.where(totals > 0, n_different / divisors, 1.0)


@wrong("3.3", "contexts without counts leave nothing to others")
def witten_bell_shares(counts, contexts, n_contexts):
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    n_different = np.bincount(contexts, weights=counts > 0, minlength=n_contexts)
    divisors = np.maximum(totals + n_different, 1)
    return counts / divisors[contexts], n_different / divisors


@wrong("3.3", "counts ids seen once (method B) instead of different ids")
def witten_bell_shares(counts, contexts, n_contexts):
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    n_once = np.bincount(contexts, weights=counts == 1, minlength=n_contexts)
    divisors = np.maximum(totals + n_once, 1)
    return counts / divisors[contexts], np.where(totals > 0, n_once / divisors, 1.0)


@wrong("3.3", "no entry for contexts at the end that have no n-gram")
def witten_bell_shares(counts, contexts, n_contexts):
    totals = np.bincount(contexts, weights=counts)
    n_different = np.bincount(contexts, weights=counts > 0)
    divisors = np.maximum(totals + n_different, 1)
    return counts / divisors[contexts], np.where(totals > 0, n_different / divisors, 1.0)


@wrong("3.4", "a count may lose more than it has")
def discounted_shares(counts, contexts, n_contexts, discounts):
    taken = discounts[np.minimum(counts, len(discounts) - 1)]
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    freed = np.bincount(contexts, weights=taken, minlength=n_contexts)
    known = totals > 0
    divisors = np.where(known, totals, 1.0)
    return (counts - taken) / divisors[contexts], np.where(known, freed / divisors, 1.0)


@wrong("3.4", "the weight is one discount for each different id, whatever was really taken")
def discounted_shares(counts, contexts, n_contexts, discounts):
    taken = np.minimum(counts, discounts[np.minimum(counts, len(discounts) - 1)])
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    n_different = np.bincount(contexts, weights=counts > 0, minlength=n_contexts)
    known = totals > 0
    divisors = np.where(known, totals, 1.0)
    return (counts - taken) / divisors[contexts], np.where(known, discounts[-1] * n_different / divisors, 1.0)


@wrong("3.4", "every count loses the discount of the greatest")
def discounted_shares(counts, contexts, n_contexts, discounts):
    taken = np.minimum(counts, discounts[-1])
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    freed = np.bincount(contexts, weights=taken, minlength=n_contexts)
    known = totals > 0
    divisors = np.where(known, totals, 1.0)
    return (counts - taken) / divisors[contexts], np.where(known, freed / divisors, 1.0)


@wrong("3.4", "great counts lose nothing")
def discounted_shares(counts, contexts, n_contexts, discounts):
    table = np.append(discounts, 0.0)
    taken = np.minimum(counts, table[np.minimum(counts, len(discounts))])
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    freed = np.bincount(contexts, weights=taken, minlength=n_contexts)
    known = totals > 0
    divisors = np.where(known, totals, 1.0)
    return (counts - taken) / divisors[contexts], np.where(known, freed / divisors, 1.0)


@wrong("3.4", "contexts without counts leave nothing to others")
def discounted_shares(counts, contexts, n_contexts, discounts):
    taken = np.minimum(counts, discounts[np.minimum(counts, len(discounts) - 1)])
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    freed = np.bincount(contexts, weights=taken, minlength=n_contexts)
    divisors = np.where(totals > 0, totals, 1.0)
    return (counts - taken) / divisors[contexts], freed / divisors


@wrong("3.4", "divides by what is left, so that nothing is left for others")
def discounted_shares(counts, contexts, n_contexts, discounts):
    taken = np.minimum(counts, discounts[np.minimum(counts, len(discounts) - 1)])
    totals = np.bincount(contexts, weights=counts - taken, minlength=n_contexts)
    freed = np.bincount(contexts, weights=taken, minlength=n_contexts)
    known = totals > 0
    divisors = np.where(known, totals, 1.0)
    return (counts - taken) / divisors[contexts], np.where(known, freed / divisors, 1.0)


@wrong("3.5", "one discount for all")
def modified_discounts(n_with):
    n1, n2 = int(n_with[1]), int(n_with[2])
    if n1 == 0:
        return np.array(FALLBACK_DISCOUNTS)
    share = n1 / (n1 + 2 * n2)
    return np.array([0.0, share, share, share])


@wrong("3.5", "the fractions upside down")
def modified_discounts(n_with):
    n1, n2, n3, n4 = (int(n) for n in n_with[1:5])
    if min(n1, n2, n3, n4) == 0:
        return np.array(FALLBACK_DISCOUNTS)
    share = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * share * n1 / n2, 2 - 3 * share * n2 / n3, 3 - 4 * share * n3 / n4])
    return discounts if discounts.min() >= 0 else np.array(FALLBACK_DISCOUNTS)


@wrong("3.5", "a discount below 0 is used: seen n-grams gain")
def modified_discounts(n_with):
    n1, n2, n3, n4 = (int(n) for n in n_with[1:5])
    if min(n1, n2, n3) == 0:
        return np.array(FALLBACK_DISCOUNTS)
    share = n1 / (n1 + 2 * n2)
    return np.array([0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3])


@wrong("3.5", "no count of 4 is taken for too little text")
def modified_discounts(n_with):
    n1, n2, n3, n4 = (int(n) for n in n_with[1:5])
    if min(n1, n2, n3, n4) == 0:
        return np.array(FALLBACK_DISCOUNTS)
    share = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3])
    return discounts if discounts.min() >= 0 else np.array(FALLBACK_DISCOUNTS)


@wrong("3.5", "Y without the 2")
def modified_discounts(n_with):
    n1, n2, n3, n4 = (int(n) for n in n_with[1:5])
    if min(n1, n2, n3) == 0:
        return np.array(FALLBACK_DISCOUNTS)
    share = n1 / (n1 + n2)
    discounts = np.array([0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3])
    return discounts if discounts.min() >= 0 else np.array(FALLBACK_DISCOUNTS)


@wrong("3.5", "negative discounts are cut off at 0, the others kept")
def modified_discounts(n_with):
    n1, n2, n3, n4 = (int(n) for n in n_with[1:5])
    if min(n1, n2, n3) == 0:
        return np.array(FALLBACK_DISCOUNTS)
    share = n1 / (n1 + 2 * n2)
    return np.maximum([0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3], 0)


@wrong("3.6", "no entry for n-grams behind the last tail")
def continuation_counts(n_ngrams, longer_suffixes):
    return np.bincount(longer_suffixes)


@wrong("3.6", "counts only whether there is a longer n-gram")
def continuation_counts(n_ngrams, longer_suffixes):
    return np.minimum(np.bincount(longer_suffixes, minlength=n_ngrams), 1)


@wrong("3.6", "indexed addition counts each n-gram once, however often it is named")
def continuation_counts(n_ngrams, longer_suffixes):
    found = np.zeros(n_ngrams, np.int64)
    found[longer_suffixes] += 1
    return found


@wrong("3.6", "at least 1 for everybody")
def continuation_counts(n_ngrams, longer_suffixes):
    return np.maximum(np.bincount(longer_suffixes, minlength=n_ngrams), 1)


@wrong("3.7", "the shorter context without its weight")
def choose_longest(places, stored, log_backoffs, shorter):
    if len(stored) == 0:
        return shorter
    return np.where(places >= 0, stored[places], shorter)


@wrong("3.7", "the weight is applied to what is stored as well")
def choose_longest(places, stored, log_backoffs, shorter):
    if len(stored) == 0:
        return log_backoffs + shorter
    return log_backoffs + np.where(places >= 0, stored[places], shorter)


@wrong("3.7", "logarithms are multiplied")
def choose_longest(places, stored, log_backoffs, shorter):
    if len(stored) == 0:
        return log_backoffs * shorter
    return np.where(places >= 0, stored[places], log_backoffs * shorter)


@wrong("3.7", "place 0 is taken for missing")
def choose_longest(places, stored, log_backoffs, shorter):
    if len(stored) == 0:
        return log_backoffs + shorter
    return np.where(places > 0, stored[places], log_backoffs + shorter)


@wrong("3.7", "fails where nothing is stored")
def choose_longest(places, stored, log_backoffs, shorter):
    return np.where(places >= 0, stored[places], log_backoffs + shorter)


@wrong("3.7", "the larger of the two instead of the longer")
def choose_longest(places, stored, log_backoffs, shorter):
    if len(stored) == 0:
        return log_backoffs + shorter
    return np.where(places >= 0, np.maximum(stored[places], log_backoffs + shorter), log_backoffs + shorter)
