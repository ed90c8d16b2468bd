"""The engine: one loop that runs an async function over many items under a limiter.

=============  ===================================================================================
`run`          the loop: `Run`, its workers, who starts them and what ends a run. Begin here.
`limits`       how many at once: the checks of a `limit`, and the queue for its tokens
`sources`      where items come from
`windows`      sources that wait for their reader
`feeding`      reading an async iterable into a run
`items`        what an item's exception means, its time limit, what it leaves behind in its task
`nursery`      a nursery that raises a single exception
`exceptions`   chaining exceptions and looking into groups
`slices`       how long a run may go on before other tasks have their turn
`arguments`    checks of what callers pass
=============  ===================================================================================

Each module imports only modules below it in this list, except that `feeding` stands above `run`.
"""
