"""The engine: one loop that runs an async function over many items under a limiter.

=============  ===================================================================================
`feeding`      running all items of a source; reading an async iterable into a run
`run`          the loop: `Run`, its workers, who starts them and what ends a run. Begin here.
`windows`      sources that wait for their reader
`sources`      where items come from
`limits`       how many at once: the checks of a `limit`, the tokens of a run and the queue for them
`items`        what an item's exception means, its time limit, what it leaves behind in its task
`nursery`      a nursery that raises a single exception
`exceptions`   chaining exceptions, and looking into groups
`slices`       how long a run may go on before other tasks have their turn
=============  ===================================================================================

Each module imports only modules below it.
"""
