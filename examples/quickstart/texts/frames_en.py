"""How English documents are put together: openings, transitions, endings and whole sentence frames. Slots: see grammar_en.py."""

from engine import block, sections

TIMES = block("""
<the next|early in the|one|that> morning
<late in|early in> the <afternoon|morning|evening>
shortly before <noon|eight o'clock|sunrise|midnight|supper>
after <breakfast|lunch|a long pause|work|a while|{num 2-9} days>
at {num 2-12} o'clock
on that <day|evening|morning>
on <Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday>
in the <spring|summer|autumn|winter>
in {month}
an hour later
<two|three|four|five> weeks <earlier|later>
every <morning|evening|Saturday|Sunday>
""")

LINKS = block("""
then
after that
first
finally
nevertheless
therefore
luckily
unfortunately
<suddenly|all at once>
as always
this time
later
meanwhile
in the end
carefully
with <great difficulty|much patience|a sigh|trembling hands|a smile>
<to be on the safe side|to everyone's delight|much to the surprise of {the human}>
without <a word|any haste|thinking for long>
""")

MANNER = block("""
once more
<very carefully|quite slowly|in peace and quiet>
together with {the human}
<as usual|as promised|just as every year>
in secret
for <two|three> hours
in spite of {the weather}
in front of {the human}
without any help
""")

SOCIAL = block("""
help: {O} with {a vessel +}
tell: {O} about {a beast +}
ask: {O} for {a thing}
show: {O} {a thing +}
give: {O} {a thing +}
listen to: {O} <attentively|patiently|with half an ear>
visit: {O} in {the building}
call: {O} the same evening
warn: {O} about {the weather}
walk: with {O} as far as {the building}
invite: {O} to {a event}
send: {O} {a paper +}
thank: {O} for {the paper}
lend: {O} {a clothing +}
surprise: {O} with {a thing +}
talk: with {O} about {the weather}
meet: {O} outside {the building}
argue: with {O} about {the event}
""")

ALONE = block("""
think: for a long time about {the paper}
wake up: from the noise of {the vehicle}
drink: <a cup of tea|a glass of milk|a mug of cocoa|some strong coffee>
look: out of the window at {the land}
look forward to: {the event}
sit down: on {a furniture +}
complain: about {the human}
remember: {a thing} from {place}
put on: {a clothing +}
forget: {a thing} in {the building}
go: home through {the land}
run: to {the building}
open: {a vessel} from {place}
wonder: about {the human}
pay: {num 2-60} pounds for {a thing}
fall: asleep on {a furniture}
find: {a thing rel} in {a vessel}
see: {a beast rel} outside {the building}
enter: {a building rel}
think of: a name for {the beast}
""")

DECIDED = ["decided", "tried", "hoped", "began", "forgot", "promised", "planned", "refused", "wanted"]
MODALS = ["wanted to", "had to", "could", "was_able to", "used to"]
NOTICED = ["noticed", "saw", "heard", "knew", "believed", "feared", "suspected", "thought", "learned", "explained"]

OPENINGS = block("""
{P} was {aR} in {here} and owned {a beast +}.
In {here}, not far from {a water +}, there lived a certain {P}.
For {num 3-40} years, {P} had worked as {aR} in {here}.
Everybody in {here} knew {P}.
It was {month}, and {here} smelled of <snow|rain|smoke|hay|wet leaves>.
{P} lived above {a building +} in {here}, right next to {a water}.
Nobody in {here} knew exactly how old {P} was.
When {P} moved to {here}, {he P} owned nothing but {a vessel}, {a clothing} and {a thing +}.
On a <cold|warm|foggy|windy|clear> day in {month}, {P} came to {here}.
There had always been {a thing} in the family of {P}.
{P} had {num 2-6} brothers and sisters, but only {he P} had stayed in {here}.
{P} had never meant to become {aR}.
<Thick fog|A bright sky|The first snow|The heat of summer> lay over {here} when {P} stepped out of the house.
Many years ago, there was {a building rel} in {here}.
""")

INTRODUCE_OTHER = block("""
{Q} often came to visit and brought {a thing}.
{Q} lived next door, and the two had known each other since their schooldays.
{Q} helped now and then, above all in {month}.
{Q} was there as well that day.
That was how {he P} first met {Q}.
{Q} was quite different: <quiet and careful|loud and cheerful|clever but impatient|slow but thorough>.
{P} had not spoken a word to {Q} for {num 2-9} years.
""")

FEELINGS = block("""
{P} was <tired|happy|proud|disappointed|relieved|curious|angry|unsure|content>, <but|and> {he P} said <nothing|not a word|nothing to anyone>.
{P} had never seen such a thing before: {a thing +} in the middle of {the height}.
{he P} liked that better than {a event +}.
{P} thought of {a building +} in {place} and of {a human}.
Was it luck, or was it chance?
Perhaps it was because of {the weather}, or perhaps because of {the paper}.
{he P} laughed, for {the thing -} was {adj thing}.
It took {num 2-12} days before {P} understood.
More than {num 2-20} people had been watching.
{the human +} shook a weary head and walked on.
Nobody answered, and only {the beast} looked up.
It was <easier|harder|funnier|riskier> than it had seemed.
{P} counted to {num 5-90} and waited.
{a vehicle +} went by outside.
The longer {P} thought about it, the less {he P} understood {the paper}.
Neither {P} nor {the human} knew where {the thing} had come from.
""")

ENDINGS = block("""
Ever since, {a thing +} has stood on {the furniture} for everyone to see.
They still tell the story in {here}, mostly <in winter|after dinner|on long evenings>.
In the evening, everyone sat around {a furniture} and ate {a dish +}.
And {P}? {he P} bought {a thing +} and was content.
So the day came to an end, and the moon stood over {the building}.
{P} hung {the clothing} on its hook and put out the light.
Everything was going to change the following {month}, but that is another story.
From then on, {the human} came by every <Monday|Friday|Sunday>.
When it grew dark, {P} closed the door, and only {a beast} could still be heard.
“Tomorrow,” said {P} softly, “tomorrow we shall take {a tool +}.”
Only {a thing} remained, but {P} never gave it away.
""")

WEATHER = block("""
<It had been raining|It had been snowing|The wind had been blowing|The sun had been shining> <since the morning|for {num 2-9} days|without a break>, and {the water -} was {adj water}.
The sky was <grey|clear|full of clouds|as blue as glass>, and the wind blew <leaves|dust|snow|clouds> across {the land}.
The thermometer showed {num 2-29} degrees<| below zero>.
{the weather +} came sooner than {the human} had expected.
There had been a frost during the night, and {the vehicle} would not start.
A thunderstorm was gathering over {the height}.
In spite of {the weather}, {the building} was full of people.
After {the weather}, the water stood {num 5-60} inches deep in {the room}.
Towards {num 2-11} o'clock, the sky cleared, and {the building} gleamed in the sun.
First came {the weather}, and then it was so quiet that one could hear {a beast}.
The air was <mild|clear|heavy|icy|damp>, and swallows circled above {the water}.
A rainbow stretched from {the building} to {the height}.
There was <snow|frost|dew|mist> on {the height}, while {a plant} was already in flower in {the land}.
Where {a water +} had been the day before, there was only <mud|ice|fog>.
The wind tore {the clothing} out of the hands of {the human}.
<Drops ran down|Ice flowers grew on|Snowflakes danced outside> the window, and {the machine} hummed softly.
It was so <hot|cold|windy> that even {the beast} stayed indoors.
Hardly had {the weather} passed when {the human} opened the windows.
The moon stood over {the land}, and {a wild} called.
""")

LETTER = sections("""
[open]
Thank you very much for your letter of {#2-28} {month}, which only reached me <yesterday|today|on Monday>.
At last I have found the time to write to you from {here}.
I have been living in {here} for {num 2-8} weeks now, in {a room +} with a view of {a building}.
Here in {here} everything is as it always was, except that {the building} has a new roof.
How are you, and how is {the beast}?
You will be amazed at what happened to me in {here}.
I am sorry, but I cannot come to {the event} in {month}.
It is raining today, and so you shall have a very long letter.
[middle]
Just imagine, {a beast +} was standing in the middle of {the building} the other day!
Do you remember how we once threw {a thing} into {the water}?
The food is good, and yesterday we had {a dish} with {0 produce pl}.
I learn something new every day, for example about {0 machine pl}.
Only {the weather} worries me.
Most of all I like to sit under {a plant +} and read {a paper}.
The people here are <friendly|silent|curious|very polite>, especially {the human}.
I have bought you {a thing +}, but I will not tell you yet what it is for.
{name} sends you best wishes and asks whether you still have {the thing}.
Could you please send me {the clothing} and {a paper}?
The journey took {num 3-14} hours, and {the vehicle -} was {adj vehicle}.
What has become of {the human} from {place}?
If all goes well, I shall come home for {num 2-9} days in {month}.
I miss {the beast} and our walks to {the water}.
Last night I dreamed of {a wild +}.
[close]
Write soon and tell me how {the human} is.
Please give my regards to {my kin}, and do not forget {the beast}.
I must stop now, because {the vehicle} will not wait.
I am already looking forward to {the event}.
I hope to see you soon in {place}!
Keep well, and look after {the beast}.
[greeting]
Kind regards
With all good wishes
Much love
Yours ever
Your old friend
With best wishes from all of us
""")

PLACE = block("""
{here} lies <at the foot|at the edge|to the north|to the south> of {a height +} and has {#150-990} inhabitants.
In the middle of {here} stands {a building +}, the first thing that visitors see.
In {month}, {0 plant pl} and {0 plant pl} are in flower here.
Anyone who comes from {here} can see {the building} from far away.
{0 wild pl} and rare birds live by {the water}.
In {#1412-1895}, {the building} burned down, and it was rebuilt {num 2-9} years later.
People used to live from <timber|salt|wool|glass|fish|cloth>, but today they live from their guests.
There is a market outside {the building} every <Wednesday|Saturday|Sunday>.
One can buy {0 produce pl}, {0 supply} and {0 tool pl} there.
A narrow path leads to {the water} between {the building} and {the building}.
{the vehicle} to {place} runs {num 3-9} times a day.
In winter, {the land} is often covered in snow for weeks.
There is always a little wind on {the height}.
The cooking is simple: {a dish} with {0 produce pl}, and a glass of cider.
{a instrument rel} is on show in {the building}.
It is at its best when {the weather} is over and {the beast pl} are out on the pasture.
An old legend tells of {a wild +} with a silver voice.
The highest point is {a height} of {#310-980} metres.
A walk around {the water} takes {num 2-6} hours.
Children will find {a water}, {a beast +} to stroke and {a vehicle +}.
The coat of arms shows {a wild} above {a tool}.
There are {#300-990} books in the library, among them {a paper +} of {#1502-1790}.
""")

CREATURE = block("""
{a T} sleeps for {num 3-15} hours a day, best of all in {a vessel}.
{0 T pl} eat <grass|seeds|leaves|beetles|worms> and sometimes {0 produce pl}.
Never approach {a T} with {a tool}.
{a T +} recognises people by their voices.
{0 T pl -} have their young in {month}, usually {num 2-7} at a time.
A fully grown animal weighs about {num 2-90} pounds.
At night, one can hear {the T} as far away as {the building}.
People used to believe that {a T} could foretell {the weather}.
{0 T pl -} are especially shy when {a human} is wearing {a clothing +}.
Anyone who finds {a T +} should first put out {a vessel} of water.
Against {the weather}, {the T} needs warmth above all.
Compared with {a wild}, {a T} is rather <slow|nimble|noisy|patient>.
{a T} in {place} lived to the age of {num 5-40}, which is rare.
In old pictures, {the T} often appears beside {a plant}.
""")

NOTICE = block("""
{a event +} will be held in {the building} on {#2-28} {month} at {#8-20}:{#10-55}.
Tickets cost {#2-18} pounds, and children under {num 6-14} pay nothing.
Missing: {a beast}, {adj beast}, answers to the name of {name}, last seen near {the water}.
Because of {the weather}, {the building} will remain closed until {month}.
For sale: {a furniture +}, {#10-200} inches wide, and {num thing}.
{a thing +} was found on {the vehicle} to {place}.
{name} {family} is looking for {a tool} and offers {a instrument} in return.
Anyone who has read {the paper} about {the building} should report to the town hall.
Please bring {a vessel}, {a clothing} and plenty of good humour.
The winners are {name}, {name} and {name}, and the prize is {a thing +}.
The choir will sing {a piece}, and afterwards there will be {a dish}.
New in the shop: {0 produce pl} from {place}, {#2-9} pounds a basket.
From {month}, {the vehicle} will leave at {#5-9}:{#10-55}.
The school thanks {the human} for {num schooling +}.
{the event} raised {#120-980} pounds for {the building}.
On Sunday, {name} {family} will lead a walk through {the land}, starting at {the building}.
Beware: {a wild} has been seen in {the land}.
I will swap {a instrument} for {a vehicle} or {num beast}.
""")

LOG = block("""
Wind from the <north|east|south|west|north-east|south-west>, force {num 2-9}, sea <calm|moderate|rough|choppy>.
Sighted {a boat +} to port.
{the gear} torn, patched up with {a tool}.
Course set for {place}, another {num 5-80} miles.
Position uncertain, {the weather} increasing.
Anchored off {place} in {num 3-18} fathoms.
Cargo: {num vessel} of {0 produce pl} and {num furniture}.
Crew in good health, but the cook complains about {the dish_ware}.
{num 3-40} dolphins followed the ship as far as {place}.
One of the sailors found {a beast} in {a vessel}.
Barometer falling, sails shortened.
{name} at the helm, good visibility, {num 3-25} degrees.
Took on a pilot off {place}.
""")

NEEDS = {
    "kitchen": ("dish_ware", "produce"), "workshop": ("tool", "vessel"), "machines": ("tool", "part"), "sea": ("gear", "tool"),
    "school": ("schooling", "paper"), "garden": ("tool", "plant"), "farm": ("vessel", "tool"), "music": ("instrument", "paper"),
    "house": ("tool", "vessel"),
}  # fmt: skip

HOWTO = sections("""
[open]
You will need {num A}, {a B +} and about {num 2-9} hours.
Have {a A +}, {num B} and {a thing} at hand.
It is not difficult if you have {a A +} and {a B}.
These instructions come from {my kin} in {place}.
Beginners had better use {a A +}, while {a B} is enough for those with experience.
[tip]
{a A +} is not suitable for this.
If need be, {a B +} will do as well.
This takes about {num 5-55} minutes, or a little longer in {the weather}.
If {the A -} is too {adj A}, {a B} will help.
Wait for {num 2-30} minutes before you go on.
Do not leave children alone with {the A}.
Expect it to cost about {#5-95} pounds.
It is easier with two people: one holds {the A}, and the other holds {the B}.
[close]
If you like, you can add {a thing +} at the end.
With a little practice, it can be done in {num 10-50} minutes.
Keep everything in {a vessel +}, and it will last until {month}.
Good luck, and do not forget {the B}!
""")
