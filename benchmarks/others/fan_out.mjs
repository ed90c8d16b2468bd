// The shape of p-map: so many workers at a time, a promise for each item.
//
//     node fan_out.mjs COUNT LIMIT ROUNDS
//
// Prints the microseconds of wall time and of CPU time that an item takes, a line a round.
const [count, limit, rounds] = process.argv.slice(2).map(Number);

const work = async (item) => item;

function fanOut(count, limit) {
    return new Promise((resolve, reject) => {
        const results = new Array(count);
        let next = 0;
        let finished = 0;
        function start() {
            if (next === count) return;
            const item = next++;
            (async () => {
                results[item] = await work(item);
                finished += 1;
                if (finished === count) resolve(results);
                else start();
            })().catch(reject);
        }
        for (let at = 0; at < limit; at++) start();
    });
}

const cpuTime = () => { const { user, system } = process.cpuUsage(); return user + system; };

for (let round = 0; round < rounds; round++) {
    const began = performance.now();
    const cpu = cpuTime();
    const results = await fanOut(count, limit);
    const wall = 1000 * (performance.now() - began);
    const used = cpuTime() - cpu;
    if (!results.every((result, item) => result === item)) throw new Error("a wrong result");
    console.log(wall / count, used / count);
}
