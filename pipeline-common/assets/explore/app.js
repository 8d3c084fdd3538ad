// The names of the store's SAEs.
const { saes } = await (await fetch("api/saes")).json();
for (const { sae } of saes) {
  const item = document.createElement("li");
  item.textContent = sae;
  document.getElementById("saes").append(item);
}
