"""The engine: one loop that runs an async function over many items under a limiter.

=============  ===================================================================================
`feeding`      running all items of a source; reading an async iterable into a run
`run`          `Run`, as its owner sees it. Begin here.
`loop`         what one worker does
`ending`       how a run ends, and what is told of its items
`crew`         who works, and who may start
`windows`      sources that wait for their reader
`sources`      where items come from
`limits`       how many at once: the checks of a `limit`, the tokens of a run and the queue for them
`items`        what an item's exception means, its time limit, its context
`scopes`       what an item leaves open in its task
`nursery`      a nursery that raises a single exception
`exceptions`   chaining exceptions, and looking into groups
`slices`       how long the runs may go on before other tasks have their turn
=============  ===================================================================================

Each module imports only modules below it.
"""
